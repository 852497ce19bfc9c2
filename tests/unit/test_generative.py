"""Flows, auto-encoders, and the scores that read them: closed forms, autograd, other code."""

from __future__ import annotations

import io
import math
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robust_ood import attacks, detectors, models, training
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.evaluation.sanity import check
from robust_ood.regions import Linf

normflows = pytest.importorskip("normflows", reason="the extra flows is not installed")


def flow(*, channels: int = 1, size: int = 4, levels: int = 2, bits: int = 8) -> models.Glow:
    """Return a flow in float64 that one batch has initialised, with weights moved away from there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.Glow(size, channels, levels, steps=2, hidden=6, bits=bits).double()
        net.train()
        net(torch.rand(32, channels, size, size, dtype=torch.float64))
        with torch.no_grad():
            for weight in net.parameters():
                weight += 0.05 * torch.randn_like(weight)
    return net.eval()


def pictures(count: int = 3, channels: int = 1, size: int = 4, seed: int = 1) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize(("channels", "size", "levels"), [(1, 4, 2), (3, 4, 1), (3, 8, 3)])
def test_decoding_inverts_encoding(channels, size, levels):
    net = flow(channels=channels, size=size, levels=levels)
    images = pictures(3, channels, size)
    latents, _ = net.encode(images)
    assert sum(latent[0].numel() for latent in latents) == images[0].numel()
    torch.testing.assert_close(net.decode(latents), images, rtol=0, atol=1e-9)


def test_the_determinant_is_autograds():
    net = flow()
    image = pictures(1)

    def flat(pixels):
        latents, _ = net.encode(pixels.view(1, 1, 4, 4))
        return torch.cat([latent.flatten() for latent in latents])

    jacobian = torch.autograd.functional.jacobian(flat, image.flatten())  # (16, 16)
    _, log_det = net.encode(image)
    assert log_det.item() == pytest.approx(
        torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-9
    )


@pytest.mark.parametrize("bits", [5, 8])
def test_bits_are_those_of_the_density(bits):
    """From latents and determinant by the formula, with the base density written out."""
    net = flow(bits=bits)
    images = pictures()
    latents, log_det = net.encode(images)
    log_p = log_det.clone()
    for base, latent in zip(net.flow.q0, latents, strict=True):
        scaled = (latent - base.loc) * torch.exp(-base.log_scale)
        per_number = -0.5 * scaled.square() - 0.5 * math.log(2 * math.pi) - base.log_scale
        log_p += per_number.flatten(1).sum(1)
    expected = -(log_p - 16 * bits * math.log(2)) / (16 * math.log(2))
    torch.testing.assert_close(net(images), expected)


def test_bits_of_a_known_distribution():
    """Without any flow a Gaussian pixel of deviation s needs h(s) + 8 bits, h its entropy."""
    net = models.Glow(2, 1, levels=1, steps=1, hidden=2).double()
    with torch.no_grad():
        net.flow.flows[0] = nn.ModuleList([net.flow.flows[0][-1]])  # the squeeze alone
        net.flow.q0[0].log_scale.fill_(math.log(0.1))
        net.initialised.fill_(True)
    net.eval()
    draws = torch.Generator().manual_seed(0)
    images = 0.5 + 0.1 * torch.randn(20_000, 1, 2, 2, generator=draws, dtype=torch.float64)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 0.01)
    assert net(images).mean().item() == pytest.approx(entropy + 8, abs=0.01)


def test_a_flow_goes_on_from_its_state_and_never_begins_from_nothing():
    net = flow(channels=3, size=8).float()
    other = models.rebuild(models.describe(net)).eval()
    images = pictures(3, 3, 8).float()
    with pytest.raises(UserError, match="this flow has not been initialised"):
        other(images)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images), net(images))


def test_autocast_does_not_round_a_likelihood():
    net = flow().float()
    images = pictures().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(images), net(images.clone()))
        rounded = net(images)
    assert torch.equal(rounded, net(images))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: models.Glow(6, 3, levels=2), "image_size: 6 cannot be halved 2 times"),
        (lambda: models.Glow(bits=9), "bits: 9 is not in 1..8"),
        (lambda: models.AutoEncoder(12, (8, 8, 8)), "image_size: 12 cannot be halved 3 times"),
        (lambda: models.AutoEncoder(8, (8,), latent_size=192), "latent_size: 192 is not less than"),
        (lambda: models.AutoEncoder(8, ()), "widths: expected numbers >= 1"),
        (lambda: flow()(pictures(2, 3, 4)), "this flow takes"),
        (lambda: flow()(pictures(2, 1, 8)), "this flow takes"),
        (lambda: training.Flow(models.AutoEncoder(8)), "net: Flow trains a models.Glow"),
        (lambda: training.AutoEncoder(models.ThinResNet(8)), "expected|gives back images"),
        (lambda: detectors.Likelihood(models.ThinResNet(8)), "got the classifier ThinResNet"),
        (lambda: detectors.MSP(models.AutoEncoder(8)), "MSP reads the logits of a classifier"),
        (lambda: detectors.Complexity(flow(), code="zip"), "zip"),
        (lambda: detectors.ReconstructionError(models.AutoEncoder(8), p=0.5), "p: expected"),
        (
            lambda: detectors.ReconstructionError(models.ThinResNet(8, 4))(
                pictures(2, 3, 32).float()
            ),
            "expected an auto-encoder, images to images",
        ),
    ],
)
def test_mistakes_are_one_line(make, words):
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


# Scores
# --------------------------------------------------------------------------------------------------


def test_likelihood_is_minus_bits_and_complexity_adds_the_code():
    net = flow(channels=3, size=8)
    images = pictures(4, 3, 8)
    likelihood = detectors.Likelihood(net)
    torch.testing.assert_close(likelihood(images), -net(images))
    for code in ("png", "deflate"):
        complexity = detectors.Complexity(net, code=code)
        lengths = complexity(images) - likelihood(images)
        torch.testing.assert_close(lengths, complexity.lengths(images).double(), atol=1e-6, rtol=0)


def test_the_code_lengths_are_those_of_the_files():
    images = torch.rand(3, 3, 16, 16)
    detector = detectors.Complexity(flow(channels=3, size=16))
    for image, length in zip(images, detector.lengths(images), strict=True):
        array = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG", optimize=True)
        assert length.item() == pytest.approx(8 * len(file.getvalue()) / 768, rel=1e-6)
        with Image.open(file) as decoded:
            assert np.array_equal(np.asarray(decoded), array), "lossless"


def test_deflate_has_no_header_and_knows_flat_images():
    detector = detectors.Complexity(flow(channels=3, size=8), code="deflate")
    flat, noise = detector.lengths(torch.stack([torch.full((3, 8, 8), 0.5), torch.rand(3, 8, 8)]))
    assert flat < 0.7
    assert 7.5 < noise < 8.5
    png = detectors.Complexity(flow(channels=3, size=8)).lengths(torch.full((1, 3, 8, 8), 0.5))
    assert png.item() > 2.5, "the header alone"
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    length = len(raw.compress(array.tobytes())) + len(raw.flush())
    image = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255
    assert detector.lengths(image).item() <= 8 * length / 192


def test_reconstruction_is_the_norm_of_what_is_lost():
    def darker(images):
        return images - 0.25

    images = torch.rand(5, 3, 4, 4) * 0.5 + 0.25
    assert detectors.ReconstructionError(darker)(images).tolist() == pytest.approx(
        [-0.25 * 48**0.5] * 5
    )
    assert detectors.ReconstructionError(darker, p=1.0)(images).tolist() == pytest.approx(
        [-12.0] * 5
    )
    largest = detectors.ReconstructionError(darker, p=math.inf)(images)
    assert largest.tolist() == pytest.approx([-0.25] * 5)


def test_the_mahalanobis_distance_of_residuals_is_numpys():
    net = models.AutoEncoder(8, (4,), latent_size=3).eval()
    images = torch.rand(400, 3, 8, 8)
    detector = detectors.ReconstructionError(net, distance="mahalanobis").fit(
        [images[:200], images[200:]]
    )
    with torch.no_grad():
        residuals = (images - net(images)).flatten(1).double().numpy()
        score = -detector(images[:5]).double().numpy()
    covariance = np.cov(residuals.T, bias=True)
    centred = residuals[:5] - residuals.mean(0)
    expected = np.sqrt(np.einsum("nd,de,ne->n", centred, np.linalg.inv(covariance), centred))
    np.testing.assert_allclose(score, expected, rtol=1e-3)
    state = detector.state_dict()
    again = detectors.ReconstructionError(net, distance="mahalanobis")
    again.load_state_dict(state)
    assert torch.equal(again(images[:5]), detector(images[:5]))


@pytest.mark.parametrize("code", ["png", "deflate"])
def test_an_attack_on_complexity_follows_the_likelihood_and_the_true_score_chooses(code):
    detector = detectors.Complexity(flow(channels=3, size=8).float(), code=code)
    images = pictures(6, 3, 8).float()
    attack = attacks.PGD(Linf(8 / 255), steps=5)
    for direction in (1, -1):
        attacked = attacks.attack_score(detector, images, attack, direction)
        moved = direction * (detector(attacked.images) - detector(images))
        assert (moved <= 0).all()
        assert (moved < 0).any()
        assert (attacked.images - images).abs().max() <= 8 / 255 + 1e-6


def test_attacks_through_likelihood_and_reconstruction_move_them():
    images = pictures(6, 3, 8).float()
    attack = attacks.PGD(Linf(8 / 255), steps=5)
    for detector in (
        detectors.Likelihood(flow(channels=3, size=8).float()),
        detectors.ReconstructionError(models.AutoEncoder(8, (4,), latent_size=3).eval()),
    ):
        assert detector.attack_surface().needs_float32
        for direction in (1, -1):
            attacked = attacks.attack_score(detector, images, attack, direction)
            assert (direction * (detector(attacked.images) - detector(images)) < 0).all()


# Training
# --------------------------------------------------------------------------------------------------


def batch_of(images: torch.Tensor, step: int = 0) -> Batch:
    return Batch(
        images=images,
        labels=torch.zeros(len(images), dtype=torch.int64),
        indices=torch.arange(len(images)),
        outliers=images[:0],
        epoch=0,
        step=step,
    )


@pytest.mark.parametrize("bits", [5, 8])
def test_noise_stays_within_the_quantisation_and_is_keyed_by_the_step(bits):
    method = training.Flow(models.Glow(8, 3, levels=1, steps=1, hidden=4, bits=bits), seed=3)
    images = (torch.rand(16, 3, 8, 8) * 255).round() / 255
    seen = method.seen(batch_of(images))
    assert torch.equal(seen, method.seen(batch_of(images)))
    assert not torch.equal(seen, method.seen(batch_of(images, step=1)))
    levels = 2**bits
    exact = ((images * 255).round() / (256 / levels)).floor()
    noise = seen * levels - exact
    assert noise.min() >= -1e-4
    assert noise.max() <= 1 + 1e-4
    assert noise.mean().item() == pytest.approx(0.5, abs=0.02)


def test_an_auto_encoder_learns_from_the_squared_error():
    net = models.AutoEncoder(8, (4,), latent_size=3)
    method = training.AutoEncoder(net)
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        expected = ((net(images) - images) ** 2).mean((1, 2, 3))
        torch.testing.assert_close(method.values(images), expected)


@pytest.mark.parametrize("make", [lambda: flow(channels=3, size=8).float(),
                                  lambda: models.AutoEncoder(8, (4,), latent_size=3).eval()])  # fmt: skip
def test_the_encoder_attack_matches_latents_and_codes(make):
    net = make()
    images = pictures(2, 3, 8).float()
    encode = attacks.encoder(net, "features")
    latents = encode(images)
    assert latents.shape == (2, 192 if isinstance(net, models.Glow) else 3)
    assert torch.equal(latents, net.features(images))
    with pytest.raises(UserError, match="is no classifier and has no logits"):
        attacks.encoder(net, "logits")(images)


def test_suites_and_sanity_checks_leave_out_what_reads_logits():
    net = flow(channels=3, size=8).float()
    detector = detectors.Likelihood(net)
    assert detector.networks == (net,)
    assert detector.classifiers == ()
    suite = attacks.build("standard", radius=8 / 255)
    assert suite.left_out(detector)
    images = pictures(4, 3, 8).float()
    inliers, outliers = sorted((images, 1 - images), key=lambda side: float(detector(side).mean()))
    alarms = check(detector, inliers, outliers, attacks.PGD(Linf(8 / 255), steps=2))
    assert any("clean AUROC" in alarm for alarm in alarms), "the outliers are likelier"
    assert not any("transferred" in alarm for alarm in alarms)
    attack = attacks.PGD(Linf(8 / 255), steps=1, objective="msp")
    with pytest.raises(UserError, match="Likelihood reads no classifier"):
        attacks.attack_score(detector, images, attack, 1)
