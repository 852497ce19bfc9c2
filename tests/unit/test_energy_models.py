"""Energy-based classifiers and classifiers calibrated with a GAN: their training by hand, samples,
networks, and the score that is a gradient's size.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn

from robust_ood import Unbounded, detectors, minimize
from robust_ood.callbacks import Checkpoints, Diverged, Guards
from robust_ood.data import Batch, OODData, to_float
from robust_ood.errors import UserError
from robust_ood.evaluation import sanity
from robust_ood.models import (
    VGG,
    ConvNet,
    DCGANDiscriminator,
    DCGANGenerator,
    WideResNet,
    describe,
    rebuild,
)
from robust_ood.randomness import generator, seed_torch
from robust_ood.rules import Langevin
from robust_ood.training import JEM, ConfidenceGAN, Optimization

SIZE = 8


@pytest.fixture
def batch(make_images):
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    images = make_images(6, size=SIZE)
    return Batch(images, labels, images[:0], torch.arange(6), epoch=2, step=5)


def smooth(classes: int = 4, seed: int = 0) -> ConvNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ConvNet((6,), (2,), 1, (12,), classes, image_size=SIZE, activation="silu")
    return net.double()


# Langevin dynamics
# -------------------------------------------------------------------------------------------------


def test_langevin_samples_a_gaussian_energy():
    """Of `E = (x - m)^2 / (2 s^2)` the chain is autoregressive, with a known mean and variance."""
    mean, deviation, step_size, noise = 0.45, 0.05, 0.001, 0.03
    images = torch.full((50, 3, 16, 16), 0.5, dtype=torch.float64)

    def energy(x):
        return ((x - mean).square() / (2 * deviation**2)).flatten(1).sum(1)

    end = minimize(
        energy, images, Unbounded(clip=False), steps=40, step_size=step_size,
        rule=Langevin(noise), keep="last",
    ).images  # fmt: skip
    kept = 1 - step_size / deviation**2
    variance = noise**2 / (1 - kept**2)
    count = end.numel()
    assert abs(end.mean().item() - mean) < 5 * math.sqrt(variance / count)
    assert abs(end.var().item() / variance - 1) < 5 * math.sqrt(2 / count)


def test_langevin_draws_are_those_of_the_keys():
    images = torch.full((3, 3, 4, 4), 0.5)

    def run(rule):
        flat = lambda x: 0 * x.flatten(1).sum(1)  # noqa: E731
        return minimize(
            flat, images, Unbounded(), steps=3, step_size=0.1, rule=rule, keep="last"
        ).images

    first = run(Langevin(0.1, 1, ("epoch", 2)))
    assert torch.equal(first, run(Langevin(0.1, 1, ("epoch", 2))))
    assert not torch.equal(first, run(Langevin(0.1, 1, ("epoch", 3))))
    assert not torch.equal(first, run(Langevin(0.1, 2, ("epoch", 2))))
    assert ((first >= 0) & (first <= 1)).all()


@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf])
def test_langevin_refuses_noise_that_is_none(noise):
    with pytest.raises(UserError, match="noise: "):
        Langevin(noise)


# JEM
# -------------------------------------------------------------------------------------------------


def test_jem_is_its_formula(batch):
    method = JEM(smooth(), steps=3, input_noise=0.1, buffer_size=20, generative_weight=0.7)
    noise = torch.randn(
        batch.images.shape, generator=method.draws("noise on images", batch), dtype=torch.float64
    )
    noisy = (batch.images + 0.1 * noise).clamp(0, 1)
    value = method.objective(batch)
    changed = [row for row in method.replay if (row * 0 + row).sum() != 0]
    assert len(changed) == 20
    samples = JEM(smooth(), steps=3, buffer_size=20).sample(batch)
    logits = method.net(noisy)
    log_p = detectors.Energy(method.net)(noisy)
    assert torch.equal(logits.logsumexp(1), log_p)
    gap = log_p.mean() - detectors.Energy(method.net)(samples).mean()
    torch.testing.assert_close(value, F.cross_entropy(logits, batch.labels) - 0.7 * gap)
    value.backward()
    assert all(parameter.grad is not None for parameter in method.net.parameters())


def test_chains_are_steps_along_log_p_with_noise_written_out(batch):
    method = JEM(smooth(), steps=4, step_size=0.3, noise=0.02, buffer_size=20)
    end = method.run_chains(batch.images, batch)
    draws = generator(0, "langevin", batch.epoch, batch.step, 0)
    current = batch.images
    for _ in range(4):
        leaf = current.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(method.net(leaf).logsumexp(1).sum(), leaf)
        normal = torch.randn(current.shape, generator=draws, dtype=torch.float64)
        current = (current + 0.3 * gradient + 0.02 * normal).clamp(0, 1)
    torch.testing.assert_close(end, current)


def test_sampling_is_in_eval_mode_and_leaves_the_network_alone(make_net, batch):
    net = make_net().train()
    statistics = {name: value.clone() for name, value in net.state_dict().items()}
    JEM(net, steps=2, buffer_size=20).sample(batch)
    assert net.training
    assert all(torch.equal(value, statistics[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_buffer_restarts_its_share_and_goes_on_with_the_rest(make_images):
    count = 300
    images = make_images(count, size=SIZE)
    still = JEM(smooth(), steps=1, step_size=1e-300, noise=0, buffer_size=500,
                restart_probability=0.2)  # fmt: skip
    restarted = 0
    for step in range(5):
        batch = Batch(images, torch.zeros(count).long(), images[:0], torch.arange(count), 0, step)
        before = still._replay_for(batch).clone()
        samples = still.sample(batch)
        moved = (still.replay != before).flatten(1).any(1)
        restarted += int(moved.sum())
        # All that was not restarted was in the buffer before, each chain once.
        known = (samples[:, None] == before[None]).flatten(2).all(2)
        assert int(known.any(1).sum()) == count - int(moved.sum())
        assert (known.sum(0) <= 1).all()
    expected = 5 * count * 0.2
    assert abs(restarted - expected) < 5 * math.sqrt(expected * 0.8)
    assert abs(still.replay.mean().item() - 0.5) < 0.01  # still uniform noise
    assert abs(still.replay.var().item() - 1 / 12) < 0.005


def test_defaults_are_the_papers_in_pixels():
    """There images are 2 x - 1: a gradient half as large, and steps and noise twice as large."""
    method = JEM(smooth())
    step, noise, input_noise = 1.0, 0.01, 0.03
    assert method.step_size == step / 2 / 2
    assert method.noise == noise / 2
    assert method.input_noise == input_noise / 2
    assert (method.steps, method.buffer_size, method.restart_probability) == (20, 10_000, 0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"buffer_size": 0}, "buffer_size: 0"),
        ({"step_size": 0.0}, "step_size: 0"),
        ({"noise": -0.1}, "noise: "),
        ({"input_noise": -0.1}, "input_noise: "),
        ({"restart_probability": 1.5}, "restart_probability: 1.5"),
        ({"generative_weight": -1.0}, "generative_weight: -1"),
        ({"weight_ramp": (0.5, 0.1)}, "weight_ramp: "),
        ({"energy_limit": 0.0}, "energy_limit: 0"),
    ],
)
def test_jem_refuses_settings_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        JEM(smooth(), **settings)


def test_a_buffer_smaller_than_a_batch_is_refused(batch):
    with pytest.raises(UserError, match="buffer_size: 5 chains"):
        JEM(smooth(), buffer_size=5).sample(batch)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    draws = np.random.default_rng(0)
    for name in ("train", "validation"):
        images = draws.integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, 24))
    return folder


def fit(method, arrays, folder, callbacks=(), **options):
    data = OODData("train", "validation", root=arrays, num_classes=4, batch_size=8,
                   augmentation="none")  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        callbacks=[*callbacks, Checkpoints(every_n_steps=1)], **{"max_epochs": 1, **options},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(method, data)
    return trainer


def test_exploding_energies_stop_the_run_with_advice(arrays, tmp_path):
    method = JEM(smooth().float(), steps=1, buffer_size=16, energy_limit=1e-7)
    with pytest.raises(Diverged) as caught:
        fit(method, arrays, tmp_path, [Guards()])
    message = str(caught.value)
    assert "\n" not in message
    assert "beyond energy_limit 1e-07, after step 1" in message
    assert "last good checkpoint: none; energies run apart where chains are too short" in message


def test_jem_finds_images_likelier_than_noise_and_samples_between(trained):
    _, inliers, labels, _ = trained
    method = JEM(smooth().float(), buffer_size=24, steps=10)
    net = method.net
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(120):
        batch = Batch(inliers, labels, inliers[:0], torch.arange(24), 0, step)
        optimizer.zero_grad()
        method.objective(batch).backward()
        optimizer.step()
    noise = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    energy = detectors.Energy(net)
    assert energy(inliers).mean() > energy(noise).mean() + 0.5
    assert energy(method.replay).mean() > energy(noise).mean() + 0.1
    assert (net(inliers).argmax(1) == labels).float().mean() > 0.9


# The confidence-calibrated classifier
# -------------------------------------------------------------------------------------------------


def confidence_gan(net: nn.Module, **settings) -> ConfidenceGAN:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ConfidenceGAN(net, image_size=SIZE, latent_size=5, width=4, **settings)


def test_gan_losses_are_their_formulas(make_net, batch):
    method = confidence_gan(make_net(), beta=0.7).double()
    net = method.net.train()
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    latents = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fakes = method.generator(latents)
    assert fakes.shape == batch.images.shape
    assert ((fakes >= 0) & (fakes <= 1)).all()
    real = method.discriminator(batch.images).sigmoid()
    fooled = method.discriminator(fakes).sigmoid()
    expected = -real.log().mean() - (1 - fooled).log().mean()
    torch.testing.assert_close(method.discriminator_loss(batch.images, latents), expected)

    def divergence(images):
        return (-math.log(4) - net(images).log_softmax(1).mean(1)).mean()

    net.eval()  # no dropout in the generator's step
    expected = -fooled.log().mean() + 0.7 * divergence(fakes)
    net.train()
    torch.testing.assert_close(method.generator_loss(latents), expected)
    assert net.training

    statistics = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(7)
    logits = net(torch.cat([batch.images, fakes.detach()]))
    net.load_state_dict(statistics)
    uniform = (-math.log(4) - logits[6:].log_softmax(1).mean(1)).mean()
    torch.manual_seed(7)
    loss = method.classifier_loss(batch, latents)
    torch.testing.assert_close(loss, F.cross_entropy(logits[:6], batch.labels) + 0.7 * uniform)


def test_each_loss_trains_one_network(make_net, batch):
    method = confidence_gan(make_net()).double()
    latents = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nets = {"classifier": method.net, "generator": method.generator,
            "discriminator": method.discriminator}  # fmt: skip
    losses = {
        "classifier": lambda: method.classifier_loss(batch, latents),
        "generator": lambda: method.generator_loss(latents),
        "discriminator": lambda: method.discriminator_loss(batch.images, latents),
    }
    for name, loss in losses.items():
        method.zero_grad(set_to_none=True)
        loss().backward()
        reached = {
            other
            for other, net in nets.items()
            if any(parameter.grad is not None for parameter in net.parameters())
        }
        assert reached == {name}
        assert all(parameter.requires_grad for parameter in method.parameters())


def test_a_training_step_is_three_steps_in_turn(make_net, arrays, tmp_path):
    """Written out with three optimisers of torch, for two batches."""
    method = confidence_gan(make_net(dtype=torch.float32)).train()
    trainer = fit(method, arrays, tmp_path, limit_train_batches=2, limit_val_batches=0)
    assert trainer.global_step == 2  # not six
    by_hand = confidence_gan(make_net(dtype=torch.float32)).train()
    nets = (by_hand.discriminator, by_hand.generator, by_hand.net)
    optimizers = [
        torch.optim.Adam(net.parameters(), 2e-4, betas=(first, 0.999))
        for net, first in zip(nets, (0.5, 0.5, 0.9), strict=True)
    ]
    for batch in trainer.datamodule.train_dataloader():
        if batch.step == 2:
            break
        batch = batch._replace(images=to_float(batch.images))
        seed_torch(0, "dropout", batch.epoch, batch.step, 0, device=torch.device("cpu"))
        latents = by_hand._latents("latents of the generator", batch)
        fresh = by_hand._latents("latents of the classifier", batch)
        losses = (
            lambda batch=batch, z=latents: by_hand.discriminator_loss(batch.images, z),
            lambda z=latents: by_hand.generator_loss(z),
            lambda batch=batch, z=fresh: by_hand.classifier_loss(batch, z),
        )
        for optimizer, loss in zip(optimizers, losses, strict=True):
            by_hand.zero_grad()
            loss().backward()
            optimizer.step()
    for name, value in by_hand.state_dict().items():
        if not name.startswith("means."):
            torch.testing.assert_close(method.state_dict()[name], value, msg=name)


def test_a_large_beta_makes_the_classifier_unsure_of_fakes(arrays, tmp_path, make_net):
    fast = Optimization(optimizer={"name": "adam", "lr": 0.02}, scheduler="constant")
    confidences = {}
    for beta in (0.0, 10.0):
        method = confidence_gan(make_net(dtype=torch.float32), beta=beta, optimization=fast)
        trainer = fit(method, arrays, tmp_path / str(beta), max_epochs=8, limit_val_batches=0)
        confidences[beta] = float(trainer.callback_metrics["train/fake_confidence"])
    assert confidences[10.0] < 0.4
    assert confidences[10.0] < confidences[0.0] - 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val: .*got 1.0"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches: .*got 2"),
        ({"precision": "16-true"}, "trainer.precision: .*got 16-true"),
    ],
)
def test_what_manual_optimisation_cannot_do_is_refused(
    make_net, arrays, tmp_path, options, message
):
    with pytest.raises(UserError, match=message):
        fit(confidence_gan(make_net(dtype=torch.float32)), arrays, tmp_path, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0}, "beta: "),
        ({"image_size": 12}, "image_size: expected 8, 16, 32"),
        ({"image_size": 4}, "image_size: expected 8, 16, 32"),
        ({"latent_size": 0}, "latent_size: 0"),
        ({"image_size": 8, "latent_size": 193}, "latent_size: 193 is more than the 192 numbers"),
        ({"width": 0}, "width: "),
    ],
)
def test_confidence_gan_refuses_settings_by_name(make_net, settings, message):
    with pytest.raises(UserError, match=message):
        ConfidenceGAN(make_net(), **settings)


# Networks
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16, 32])
def test_generator_and_discriminator_fit_each_other(size):
    net = DCGANGenerator(size, latent_size=7, width=2)
    images = net(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (5, 3, size, size)
    assert DCGANDiscriminator(size, width=2)(images).shape == (5,)


def test_vgg_13_is_the_papers():
    """Ten convolutions and three linear layers, 512-512-512, whose sizes give 9.9 M parameters."""
    with torch.device("meta"):
        net = VGG()
    convolutions = [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]
    linear = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
    assert linear == [(512, 512), (512, 512), (512, 10)]
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize(
    "net",
    [
        VGG(11, width=2, hidden=(6,), num_classes=4),
        WideResNet(10, 1, num_classes=4, norm="none", activation="silu"),
        WideResNet(10, 1, num_classes=4, norm="none", activation="leaky_relu"),
        ConvNet((4,), (4,), 1, (6,), 4, activation="elu"),
    ],
    ids=["VGG", "WideResNet, SiLU", "WideResNet, leaky ReLU", "ConvNet, ELU"],
)
def test_networks_are_rebuilt_from_what_they_say(net):
    again = rebuild(describe(net))
    again.load_state_dict(net.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net.eval()
    again.eval()
    assert torch.equal(net(images), again(images))
    assert net(images).shape == (2, 4)


def test_a_network_without_normalisation_has_none():
    net = WideResNet(10, 1, norm="none", activation="silu")
    kinds = {type(part) for part in net.modules()}
    assert nn.BatchNorm2d not in kinds
    assert nn.ReLU not in kinds
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VGG(12), "depth: expected one of"),
        (lambda: VGG(image_size=48), "image_size: expected a multiple of 32"),
        (lambda: WideResNet(10, 1, norm="group"), "norm: "),
        (lambda: WideResNet(10, 1, activation="gelu"), "activation: "),
    ],
)
def test_networks_refuse_settings_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


# The gradient's norm
# -------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """One logit, `-|x - c|^2 / (2 s^2)`: the log-density of a Gaussian."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation
        self.center = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def forward(self, images):
        squares = (images - self.center).square().flatten(1).sum(1, keepdim=True)
        return -squares / (2 * self.deviation**2)


class PiecewiseLinear(nn.Module):
    """One logit of a ReLU network, which has no second derivative anywhere."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(192, 30, generator=draws))
        self.second = nn.Parameter(torch.randn(30, 1, generator=draws))

    def forward(self, images):
        return torch.relu((images - 0.5).flatten(1) @ self.first) @ self.second


def test_gradient_norm_of_a_gaussian_is_its_distance_over_the_variance(make_images):
    images = make_images(5, size=SIZE)
    detector = detectors.GradientNorm(Quadratic(0.3))
    distance = (images - 0.4).flatten(1).norm(dim=1)
    torch.testing.assert_close(detector(images), -distance / 0.3**2)
    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(detector(leaf).sum(), leaf)
    expected = -(images - 0.4) / distance.view(-1, 1, 1, 1) / 0.3**2
    torch.testing.assert_close(slope, expected)


def test_gradient_norm_is_autograds_image_by_image(make_net, make_images):
    net = make_net().train()
    images = make_images(5, size=SIZE)
    detector = detectors.GradientNorm(net)
    with torch.inference_mode():
        scores = detector(images)
    assert net.training
    net.eval()
    for image, score in zip(images, scores, strict=True):
        leaf = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(leaf).exp().sum().log(), leaf)
        torch.testing.assert_close(score, -gradient.norm())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_gradient_norms_own_gradient_is_that_of_differences(make_images):
    images = make_images(2, size=SIZE)
    detector = detectors.GradientNorm(smooth())
    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(detector(leaf).sum(), leaf)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double()
    step = 1e-6
    change = detector(images + step * direction) - detector(images - step * direction)
    expected = (slope * direction).flatten(1).sum(1)
    torch.testing.assert_close(change / (2 * step), expected, rtol=1e-5, atol=1e-9)


def test_where_the_norms_gradient_vanishes_an_alarm_is_raised(make_images):
    """Attackers still have log p, and differences that feel the kinks."""
    images = make_images(16, size=SIZE).float()
    others = make_images(16, seed=1, size=SIZE).float()
    detector = detectors.GradientNorm(PiecewiseLinear())
    found = sanity.check(detector, images, others)
    assert any("input gradient of exactly zero" in warning for warning in found)
    gradients = []
    for surrogate in detector.attack_surface().surrogates:
        leaf = images.clone().requires_grad_()
        gradients.append(torch.autograd.grad(surrogate(leaf).sum(), leaf)[0].abs().sum())
    assert gradients[0] == 0
    assert gradients[1] > 0
    assert gradients[2] > 0


def test_the_probed_norm_tends_to_the_norm(make_images):
    images = make_images(4, size=SIZE)
    detector = detectors.GradientNorm(smooth(), reach=1e-4, probes=4000)
    torch.testing.assert_close(detector.probed_norm(images), detector(images), rtol=0.08, atol=0)
    assert detectors.surface_of(detector).needs_float32
    with pytest.raises(UserError, match="reach: "):
        detectors.GradientNorm(smooth(), reach=0.0)
    with pytest.raises(UserError, match="probes: "):
        detectors.GradientNorm(smooth(), probes=0)
