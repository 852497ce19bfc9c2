"""GOOD, ProoD, CCU and noise-trained outlier exposure: their objectives by hand, their checkpoints,
and what they guarantee on the embedded digits.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn

from robust_ood import L2, Linf, bounds, metrics, minimize
from robust_ood.attacks import EncoderAttack, encoder
from robust_ood.callbacks import Checkpoints
from robust_ood.data import Batch, OODData
from robust_ood.detectors import MSP
from robust_ood.errors import UserError
from robust_ood.models import ConvNet, Gated, MixtureRatio, describe, load_network
from robust_ood.training import CCU, GOOD, GaussianNoise, Optimization, ProoD
from robust_ood.training.ramps import climbed

CLASSES = 4
SIZE = 8


@pytest.fixture
def batch(make_images):
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    images = make_images(6, size=SIZE)
    return Batch(images, labels, make_images(5, seed=1, size=SIZE), torch.arange(6), 2, 5)


def convnet(outputs: int = CLASSES, seed: int = 0, size: int = SIZE) -> ConvNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ConvNet(
            (6,), (2,), size // 8, (12,), outputs, nonpositive_head=outputs == 1, image_size=size
        )
    return net.double()


def small(outputs: int = 10, seed: int = 0) -> ConvNet:
    """Return a network for the digits."""
    return convnet(outputs, seed, 32).float()


def mixtures(batch: Batch, **settings) -> CCU:
    """Return a CCU whose mixtures were fitted to a few images."""
    method = CCU(convnet(), image_size=SIZE, components=3, mixture_images=3, **settings)
    method.net.double()
    method.fit_mixtures(batch.images, batch.outliers)
    return method


def uniform(logits: torch.Tensor) -> torch.Tensor:
    return -logits.log_softmax(1).mean(1)


def set_progress(method, progress: float) -> None:
    type(method).progress  # noqa: B018  # a property: there is one to replace
    method.__class__ = type(
        type(method).__name__, (type(method),), {"progress": property(lambda _: progress)}
    )


# Objectives
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantile", [0.0, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("progress", [1.0, 0.2])
def test_good_is_its_formula(batch, quantile, progress):
    method = GOOD(convnet(), 0.05, quantile, 0.7, (0.0, 0.4), (0.1, 0.3))
    set_progress(method, progress)
    logits = method.net(batch.images)
    outliers = method.net(batch.outliers)
    radius = 0.05 if progress == 1 else 0.025
    weight = 0.7 if progress == 1 else 0.35
    differences = bounds.logit_differences_upper(method.net, batch.outliers, radius)
    upper = differences.flatten(1).amax(1)  # (M,)
    order = sorted(range(5), key=lambda place: upper[place].item())
    terms = []
    for place in order[: int(quantile * 5 + 1e-9)]:
        terms.append(torch.log(1 + upper[place] ** 2 / 2))
    for place in order[int(quantile * 5 + 1e-9) :]:
        spread = outliers[place].max() - outliers[place].min()
        terms.append(torch.log(1 + spread**2 / 2))
    expected = F.cross_entropy(logits, batch.labels) + weight * torch.stack(terms).mean()
    torch.testing.assert_close(method.objective(batch), expected)


@pytest.mark.parametrize("part", ["both", "discriminator", "classifier"])
def test_prood_is_its_formula(batch, part):
    method = ProoD(convnet(), convnet(1, seed=1), 0.05, part, 1.5, 0.6, 0.8, (0.0, 1.0), (0.0, 0.5))
    set_progress(method, 0.5)
    classifier = method.net.classifier
    gate = method.net.gate

    def log_p(images):
        share = torch.sigmoid(gate(images) + 1.5)  # (N, 1)
        return (share * classifier(images).softmax(1) + (1 - share) / CLASSES).log()

    joint = F.nll_loss(log_p(batch.images), batch.labels)
    joint = joint - 0.6 * log_p(batch.outliers).mean()
    upper = bounds.logit_bounds(gate, batch.outliers, 0.05).upper[:, 0]
    binary = -gate(batch.images).sigmoid().log().mean()
    binary = binary - 0.4 * (-upper).sigmoid().log().mean()
    expected = {"both": joint + binary, "discriminator": binary, "classifier": joint}[part]
    value = method.objective(batch)
    torch.testing.assert_close(value, expected)
    value.backward()
    for name, net in (("classifier", classifier), ("discriminator", gate)):
        trained = part in ("both", name)
        assert all((parameter.grad is not None) == trained for parameter in net.parameters())


def test_ccu_is_its_formula(batch):
    method = mixtures(batch, prior_ratio=0.5, outlier_weight=0.6, density_weight=0.3)
    gate = method.mixtures

    def log_density(mixture, points, smallest=-math.inf):
        scales = mixture.log_scales.double().clamp_min(smallest).exp()  # (k,)
        weights = mixture.weight_logits.double().softmax(0)
        squares = ((points[:, None] - mixture.means.double()) ** 2).sum(2)  # (N, k)
        logs = weights.log() - 192 * scales.log() - squares / (2 * scales**2)
        return logs.logsumexp(1)

    smallest = gate.inside.log_scales.max().item() + math.log(2)
    inside = {}
    outside = {}
    log_p = {}
    for name, images in (("in", batch.images), ("out", batch.outliers)):
        points = (images.flatten(1) - gate.mean) @ gate.axes.T / gate.scales
        inside[name] = log_density(gate.inside, points)
        outside[name] = log_density(gate.outside, points, smallest)
        ratio = (inside[name] - outside[name])[:, None]  # (N, 1), of logarithms
        log_f = method.net.classifier(images).log_softmax(1)
        joint = torch.logaddexp(log_f + ratio, torch.tensor(0.5 / CLASSES).log())
        log_p[name] = joint - torch.logaddexp(ratio, torch.tensor(0.5).log())
    expected = F.nll_loss(log_p["in"], batch.labels) - 0.6 * log_p["out"].mean()
    expected = expected - 0.3 * (inside["in"].mean() + 0.6 * outside["out"].mean())
    torch.testing.assert_close(method.objective(batch), expected, rtol=1e-6, atol=1e-6)


def test_noisy_outlier_exposure_is_its_formula(batch):
    method = GaussianNoise(convnet(), 0.2, outlier_weight=0.5)
    inliers, outliers = method.attacked(batch)
    assert abs((outliers - batch.outliers).std().item() - 0.2) < 0.02
    expected = F.cross_entropy(method.net(inliers), batch.labels)
    expected = expected + 0.5 * uniform(method.net(outliers)).mean()
    torch.testing.assert_close(method.objective(batch), expected)
    assert method.needs_outliers
    assert not GaussianNoise(convnet(), 0.2).needs_outliers


def test_a_ramp_climbs_between_its_shares():
    assert [climbed((0.2, 0.6), x) for x in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )
    assert climbed((0.0, 0.0), 0.0) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GOOD(convnet(), -0.1), "radius: -0.1"),
        (lambda: GOOD(convnet(), 0.1, quantile=1.2), "quantile: 1.2"),
        (lambda: GOOD(convnet(), 0.1, weight_ramp=(0.5, 0.2)), "weight_ramp: expected two shares"),
        (lambda: GOOD(convnet(), 0.1, radius_ramp=(0, 2)), "radius_ramp: expected two shares"),
        (lambda: ProoD(convnet()), "discriminator: not given"),
        (
            lambda: ProoD(Gated(convnet(), convnet(1)), convnet(1)),
            "discriminator: the network has a gate",
        ),
        (lambda: ProoD(convnet(), convnet(1), -1), "radius: -1"),
        (lambda: ProoD(convnet(), convnet(1), part="gate"), "part: expected one of .*, got 'gate'"),
        (lambda: ProoD(convnet(), convnet(1), bound_weight=-1), "bound_weight: -1"),
        (lambda: ProoD(convnet(), convnet(1), bias_shift=math.inf), "shift: expected a finite"),
        (lambda: CCU(convnet(), components=0), "components: expected a number >= 1"),
        (lambda: CCU(convnet(), SIZE, directions=193), r"directions: expected a number in \[1, 192"),
        (lambda: CCU(convnet(), prior_ratio=0), "prior_ratio: expected a number > 0"),
        (lambda: CCU(convnet(), mixture_images=50), "mixture_images: 50 is fewer than the 100"),
        (lambda: CCU(convnet(), smallest_scale=0), "smallest_scale: 0 is not in"),
        (lambda: CCU(convnet(), mixture_learning_rate=-1), "mixture_learning_rate: -1"),
        (lambda: CCU(Gated(convnet(), convnet(1))), "net: expected a MixtureRatio as gate"),
        (lambda: CCU(convnet(), SIZE, 7).fit_mixtures(torch.rand(6, 3, 8, 8), torch.rand(9, 3, 8, 8)),
         "components: 7 are more than the 6 inliers"),
        (lambda: CCU(convnet(), 4, 3).net(torch.rand(6, 3, 8, 8).double()), "image_shape: expected"),
        (lambda: ConvNet((3,), (1, 1)), "strides: expected one for each"),
        (lambda: ConvNet((3, 0), (1, 1)), "channels: expected numbers >= 1"),
        (lambda: ConvNet((3,), (1,), 9, image_size=8), "pooling: 9 is larger"),
        (lambda: Gated("net", convnet(1)), "classifier: expected a torch.nn.Module"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


# Runs
# -------------------------------------------------------------------------------------------------


FAST = Optimization(optimizer={"name": "adam", "lr": 2e-3})
MADE = {
    "GOOD": lambda: GOOD(small(), 16 / 255, 0.8, optimization=FAST),
    "ProoD": lambda: ProoD(
        small(), small(1), 16 / 255, optimization=FAST
    ),
    "CCU": lambda: CCU(
        small(), 32, 5, 20, mixture_images=100, smallest_scale=0.1, optimization=FAST
    ),
    "noisy OE": lambda: GaussianNoise(small(), 0.1, FAST, outlier_weight=0.5),
}  # fmt: skip


def digits() -> OODData:
    return OODData(
        "digits/train", "digits/validation", outliers="photographs/outliers",
        batch_size=32, outlier_batch_size=32, augmentation="none",
    )  # fmt: skip


def run(method, folder, resume=None, **options):
    callbacks = [Checkpoints(every_n_steps=2, keep_every_n_steps=4)] if folder else []
    trainer = Trainer(
        accelerator="cpu", callbacks=callbacks, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, max_epochs=1,
        default_root_dir=str(folder or "."), use_distributed_sampler=False,
        enable_checkpointing=bool(folder), **options,
    )  # fmt: skip
    trainer.fit(method, digits(), ckpt_path=resume, weights_only=True)
    return method


def same(first, second) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("name", MADE)
def test_a_resumed_run_ends_as_the_run_never_stopped(name, tmp_path):
    whole = run(MADE[name](), tmp_path / "whole", limit_train_batches=6)
    # A new process would begin with other weights.
    fresh = MADE[name]()
    fresh.net.load_state_dict({key: torch.rand_like(value.float()).to(value.dtype)
                               for key, value in fresh.net.state_dict().items()})  # fmt: skip
    checkpoint = str(tmp_path / "whole" / "step-4.ckpt")
    resumed = run(fresh, tmp_path / "resumed", checkpoint, limit_train_batches=6)
    assert resumed.global_step == 6
    assert same(whole, resumed)
    # The checkpoint says what network it holds, gate and all.
    net = load_network(tmp_path / "whole" / "last.ckpt")
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(net(images), whole.net.eval()(images))
    assert describe(net) == describe(whole.net)


@pytest.mark.parametrize("name", ["ProoD", "CCU"])
def test_an_ordinary_classifiers_weights_begin_a_gated_network(name, tmp_path):
    weights = small(seed=5).state_dict()
    torch.save(weights, tmp_path / "classifier.pt")
    method = MADE[name]()
    gate = {key: value.clone() for key, value in method.net.gate.state_dict().items()}
    method.begin_from(tmp_path / "classifier.pt")
    assert all(
        torch.equal(method.net.classifier.state_dict()[key], weights[key]) for key in weights
    )
    assert all(torch.equal(method.net.gate.state_dict()[key], gate[key]) for key in gate)
    other = MADE[name]()
    torch.save(method.net.state_dict(), tmp_path / "whole.pt")
    other.begin_from(tmp_path / "whole.pt")
    assert same(method.net, other.net)


@pytest.mark.parametrize("name", MADE)
def test_half_precision_trains(name):
    method = run(MADE[name](), None, limit_train_batches=2, precision="bf16-mixed")
    assert all(parameter.isfinite().all() for parameter in method.parameters())


def test_only_the_mixtures_have_their_own_learning_rate(batch):
    method = mixtures(batch, optimization=FAST, mixture_learning_rate=1e-5)
    optimizer = method.optimization.configure(method.net, 10, method.parameter_groups())[
        "optimizer"
    ]
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3, 1e-5]
    trained = sum(len(group["params"]) for group in optimizer.param_groups)
    assert trained == len(list(method.parameters()))
    frozen = mixtures(batch, optimization=FAST, mixture_learning_rate=0)
    assert not any(parameter.requires_grad for parameter in frozen.mixtures.parameters())
    assert len(frozen.parameter_groups()) == 1


# What is guaranteed, on the digits
# -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    data = digits()
    held = data.inliers("validation")
    inliers = held.read(torch.arange(60)) / 255
    outliers = data.outliers().read(torch.arange(60)) / 255
    return inliers, outliers


def trained(name: str, steps: int = 250):
    """Train on the digits for a few seconds: `(network, method)`."""
    torch.manual_seed(0)
    net = ConvNet((16, 32), (2, 2), 2, (64,), 10)
    gate = ConvNet((16, 32), (2, 2), 2, (32,), 1, nonpositive_head=True)
    optimization = Optimization(optimizer={"name": "adam", "lr": 3e-3})
    ramps = {"weight_ramp": (0.0, 0.3), "radius_ramp": (0.0, 0.5)}
    if name == "GOOD":
        method = GOOD(net, 16 / 255, optimization=optimization, **ramps)
    elif name == "ProoD":
        method = ProoD(net, gate, 16 / 255, bias_shift=0.0, optimization=optimization, **ramps)
    else:
        method = CCU(
            net, 32, 10, 64, mixture_images=300, smallest_scale=0.1, optimization=optimization
        )
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, max_steps=steps,
        enable_checkpointing=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(method, digits())
    return method.net.eval()


@pytest.mark.parametrize("name", ["GOOD", "ProoD"])
def test_a_guarantee_holds_under_attack_and_says_something(name, images):
    net = trained(name)
    inliers, outliers = images
    detector = MSP(net)
    clean = detector(outliers)
    previous = clean
    for radius in (4 / 255, 16 / 255):
        with torch.no_grad():
            upper = bounds.score_bounds(detector, outliers, radius).upper
        attacked = minimize(
            lambda x: -detector.surrogate(x), outliers, Linf(radius), steps=20,
            step_size=radius / 8, judge=lambda x: -detector(x),
        ).images  # fmt: skip
        worst = detector(attacked)
        assert (worst >= clean - 1e-6).all()
        assert (upper >= worst - 1e-5).all()
        assert (upper >= previous - 1e-5).all()
        previous = upper
    guaranteed = bounds.guaranteed_auroc(detector(inliers), upper)
    assert guaranteed > 0.8
    assert guaranteed <= metrics.auroc(detector(inliers), worst) + 1e-6
    labels = digits().inliers("validation").read_labels(torch.arange(60))
    assert (net(inliers).argmax(1) == labels).float().mean() > 0.8


def test_ccu_is_what_the_encoder_attack_does_not_break(images):
    net = trained("CCU", 150)
    inliers, _ = images
    gate = net.gate
    assert isinstance(gate, MixtureRatio)
    noise = torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    detector = MSP(net)
    alone = MSP(net.classifier)
    assert detector.published(noise).max() < 0.11  # 1 / K = 0.1
    assert metrics.auroc(detector(inliers), detector(noise)) > 0.95
    # The certificate of a pixel ball, and what PGD finds in it.
    for region in (Linf(16 / 255), L2(0.5)):
        limit = bounds.confidence_upper(net, noise, region.radius, norm=region.name)
        attacked = minimize(
            lambda x: -net.gate_logits(x), noise, region, steps=20, step_size=region.radius / 5
        ).images
        assert (detector.published(attacked) <= limit + 1e-6).all()
    # Features of noise moved onto those of inliers.
    attack = EncoderAttack(L2(12.0), steps=150)
    encode = encoder(net.classifier)
    targets = inliers[torch.arange(60) % len(inliers)]
    encoded = attack.match(encode, noise, targets)
    assert metrics.auroc(alone(inliers), alone(encoded)) < 0.75
    assert metrics.auroc(detector(inliers), detector(encoded)) > 0.95


def test_a_plain_network_guarantees_nothing(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 10))
    torch.manual_seed(0)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.5)
    upper = bounds.score_bounds(MSP(net), images[1], 32 / 255).upper
    assert bounds.guaranteed_auroc(MSP(net)(images[0]), upper) == 0
