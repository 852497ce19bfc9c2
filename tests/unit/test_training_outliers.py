"""Methods for outliers at large radii: each objective by hand in float64, mining, and its state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer

from robust_ood import L2, Linf, detectors
from robust_ood.attacks import PGD
from robust_ood.callbacks import Checkpoints, HardOutliers, MetricsFile
from robust_ood.data import Batch, OODData
from robust_ood.errors import UserError
from robust_ood.models import OutlierClass, describe, outputs, rebuild
from robust_ood.training import (
    ACET,
    ALOE,
    ATOM,
    HALO,
    NTOM,
    OE,
    RATIO,
    EnergyMargin,
    Optimization,
)

RADIUS = 8 / 255
SIZE = RADIUS / 2
ATTACK = PGD(Linf(RADIUS), steps=3, step_size=SIZE, random_start=False)
STARTED = PGD(Linf(RADIUS), steps=3, step_size=SIZE)
ROUND = PGD(L2(0.5), steps=2, step_size=0.3, random_start=False)


@pytest.fixture
def batch(make_images):
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    return Batch(make_images(6), labels, make_images(4, seed=1), torch.arange(6), epoch=2, step=5)


@pytest.fixture
def net(make_net):
    made = make_net()
    for part in made.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return made


def climb(run, loss, images, start=None):
    """Three sign steps up the loss within the ball, written out."""
    current = (images if start is None else start).clone()
    for _ in range(3):
        leaf = current.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(run(leaf)).sum(), leaf)
        moved = current + SIZE * gradient.sign()
        current = moved.clamp(images - RADIUS, images + RADIUS).clamp(0, 1)
    return current


def climb_l2(run, loss, images):
    current = images.clone()
    for _ in range(2):
        leaf = current.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(run(leaf)).sum(), leaf)
        unit = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
        offset = current + 0.3 * unit - images
        length = offset.flatten(1).norm(dim=1)[:, None, None, None]
        current = (images + offset * (0.5 / length).clamp(max=1)).clamp(0, 1)
    return current


def same_statistics(net, compute):
    """Compute with the network in train mode, and leave its running statistics as they were."""
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    value = compute(net.train())
    net.load_state_dict(kept)
    return value


def by_class(logits):
    last = torch.full((len(logits),), logits.shape[1] - 1)
    return F.cross_entropy(logits, last, reduction="none")


def confidence(logits):
    return logits.softmax(1).amax(1).log()


def uniform(logits):
    return -logits.log_softmax(1).mean(1)


def divergence(clean, moved):
    return F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="none").sum(1)


@pytest.mark.parametrize("attacked", [False, True], ids=["NTOM", "ATOM"])
def test_the_outlier_class_is_the_last_of_k_and_one(net, batch, attacked):
    joint = OutlierClass(net).double()
    method = ATOM(joint, ATTACK, outlier_weight=0.7) if attacked else NTOM(joint, 0.7)
    outliers = batch.outliers
    if attacked:
        outliers = climb(joint.eval().joint_logits, by_class, outliers)

    def expected(network):
        logits = network.joint_logits(torch.cat([batch.images, outliers]))
        assert logits.shape == (10, 5)
        return F.cross_entropy(logits[:6], batch.labels) + 0.7 * by_class(logits[6:]).mean()

    value = same_statistics(joint, expected)
    torch.testing.assert_close(method.objective(batch), value)


def test_acet_is_the_log_confidence(net, batch):
    method = ACET(net, ATTACK, outlier_weight=0.7)
    outliers = climb(net.eval(), confidence, batch.outliers)

    def expected(network):
        logits = network(torch.cat([batch.images, outliers]))
        return F.cross_entropy(logits[:6], batch.labels) + 0.7 * confidence(logits[6:]).mean()

    value = same_statistics(net, expected)
    torch.testing.assert_close(method.objective(batch), value)


def test_ratio_attacks_both_in_l2(net, batch):
    method = RATIO(net, ROUND, ROUND, outlier_weight=0.7)
    net.eval()
    labels = batch.labels
    inliers = climb_l2(net, lambda z: F.cross_entropy(z, labels, reduction="none"), batch.images)
    outliers = climb_l2(net, uniform, batch.outliers)

    def expected(network):
        logits = network(torch.cat([inliers, outliers]))
        return F.cross_entropy(logits[:6], labels) + 0.7 * uniform(logits[6:]).mean()

    value = same_statistics(net, expected)
    torch.testing.assert_close(method.objective(batch), value)


@pytest.mark.parametrize("attacked", [False, True])
def test_energies_are_pushed_over_their_margins(net, batch, attacked):
    attack = ATTACK if attacked else None
    method = EnergyMargin(net, -3.0, -1.0, 0.3, attack, attack)
    net.eval()
    inliers = batch.images
    outliers = batch.outliers

    def above(logits):
        return (-logits.logsumexp(1) + 3.0).clamp(min=0).square()

    def below(logits):
        return (-1.0 + logits.logsumexp(1)).clamp(min=0).square()

    if attacked:

        def terms(logits):
            return F.cross_entropy(logits, batch.labels, reduction="none") + 0.3 * above(logits)

        inliers = climb(net, terms, inliers)
        outliers = climb(net, lambda z: z.logsumexp(1), outliers)

    def expected(network):
        logits = network(torch.cat([inliers, outliers]))
        hinges = above(logits[:6]).mean() + below(logits[6:]).mean()
        return F.cross_entropy(logits[:6], batch.labels) + 0.3 * hinges

    value = same_statistics(net, expected)
    torch.testing.assert_close(method.objective(batch), value)


@pytest.mark.parametrize("helped", [False, True])
def test_halo_is_its_four_terms(make_net, net, batch, helped):
    helper = make_net(seed=5) if helped else None
    method = HALO(net, STARTED, outlier_weight=2.0, helper=helper)
    net.eval()
    start = batch.images
    both = torch.cat([start, batch.outliers])
    begin, begin_out = STARTED.start(both, method.draws("attack both", batch)).split([6, 4])
    clean = net(batch.images).detach()
    clean_out = net(batch.outliers).detach()
    moved = climb(net, lambda z: divergence(clean, z), start, begin)
    moved_out = climb(net, lambda z: divergence(clean_out, z), batch.outliers, begin_out)
    far = (start + 2 * (moved - start)).clamp(0, 1)

    def expected(network):
        parts = [start, batch.outliers, moved, moved_out, *([far] if helped else [])]
        logits = network(torch.cat(parts)).split([len(part) for part in parts])
        value = F.cross_entropy(logits[0], batch.labels) + 2 * uniform(logits[1]).mean()
        consistency = divergence(logits[0], logits[2]).mean()
        consistency = consistency + 2 * divergence(logits[1], logits[3]).mean()
        value = value + 3 * consistency
        if helped:
            labels = helper.eval()(moved).argmax(1)
            value = value + 0.5 * F.cross_entropy(logits[4], labels)
        return value

    value = same_statistics(net, expected)
    torch.testing.assert_close(method.objective(batch), value)
    assert not any(name.startswith("helper") for name in method.state_dict())


MADE = {
    "NTOM": lambda net: NTOM(OutlierClass(net)),
    "ATOM": lambda net: ATOM(OutlierClass(net), ATTACK),
    "ACET": lambda net: ACET(net, ATTACK),
    "RATIO": lambda net: RATIO(net, ROUND, ROUND),
    "EnergyMargin": lambda net: EnergyMargin(net, -3.0, -1.0, 0.3, ATTACK, ATTACK),
    "HALO": lambda net: HALO(net, STARTED),
}


@pytest.mark.parametrize("name", MADE)
def test_half_precision_has_the_objective_of_full(make_net, make_images, name):
    """Within a tenth, because rounding turns the sign of some pixels' steps: a term that was lost,
    or the log of a rounded 0, would be seen.
    """
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    images = make_images(6, dtype=torch.float32)
    outliers = make_images(4, seed=1, dtype=torch.float32)
    batch = Batch(images, labels, outliers, torch.arange(6), epoch=2, step=5)
    values = []
    for half in (False, True):
        method = MADE[name](make_net(dtype=torch.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = method.objective(batch)
        value.backward()
        trained = [parameter.grad for parameter in method.parameters() if parameter.requires_grad]
        assert all(gradient is None or gradient.isfinite().all() for gradient in trained)
        values.append(value.detach().float())
    torch.testing.assert_close(values[1], values[0], rtol=0.1, atol=0.05)


# The network and its score
# ---------------------------------------------------------------------------------------------


def test_the_network_has_k_logits_and_one_beside(make_net, make_images):
    net = make_net()
    joint = OutlierClass(net).double().eval()
    images = make_images(5)
    logits = joint.joint_logits(images)
    torch.testing.assert_close(logits[:, :4], net(images))
    torch.testing.assert_close(joint(images), net(images))
    features = outputs(net, images).features
    torch.testing.assert_close(logits[:, 4], joint.outlier(features)[:, 0])


def test_the_score_orders_as_minus_the_probability_of_the_class(make_net, make_images):
    joint = OutlierClass(make_net()).double().eval()
    images = make_images(20)
    detector = detectors.build("outlier-class", joint)
    probability = joint.joint_logits(images).softmax(1)[:, -1]
    torch.testing.assert_close(detector.published(images), -probability)
    torch.testing.assert_close(detector(images), (1 / probability - 1).log())
    assert torch.equal(detector(images).argsort(), (-probability).argsort())


def test_the_score_grows_with_the_odds_where_the_probability_is_exactly_0(make_net, make_images):
    joint = OutlierClass(make_net(dtype=torch.float32)).eval()
    images = make_images(4, dtype=torch.float32)
    with torch.no_grad():
        joint.outlier.bias.fill_(-200.0)
    detector = detectors.build("outlier-class", joint)
    assert detector.published(images).eq(0).all()
    assert detector(images).unique().numel() == 4
    leaf = images.requires_grad_()
    (gradient,) = torch.autograd.grad(detector.surrogate(leaf).sum(), leaf)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_a_checkpoint_can_rebuild_the_network():
    from robust_ood.models import WideResNet

    joint = OutlierClass(WideResNet(10, 1, num_classes=4))
    again = rebuild(describe(joint))
    again.load_state_dict(joint.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again.eval().joint_logits(images), joint.eval().joint_logits(images))


MISTAKES = [
    (lambda net: NTOM(net), "net: NTOM trains one more class.*OutlierClass"),
    (lambda net: ATOM(net, ATTACK), "net: ATOM trains one more class.*OutlierClass"),
    (lambda net: OutlierClass(OutlierClass(net)), "net: has an outlier class already"),
    (lambda net: detectors.build("outlier-class", net), "class of outliers"),
    (lambda net: EnergyMargin(net, -1.0, -2.0), "inlier_margin: -1.0 is not below"),
    (lambda net: HALO(net, STARTED, consistency_weight=-1.0), "consistency_weight"),
    (lambda net: HALO(net, STARTED, helper_weight=float("nan")), "helper_weight"),
    (lambda net: HALO(net, ATTACK), "inlier_attack.random_start: .* no slope"),
    (lambda net: HardOutliers(0.5), "hard_outliers.pool: 0.5 is not >= 1"),
    (lambda net: HardOutliers(1, 0.1), r"hard_outliers.skip: .* pool \* \(1 - skip\) >= 1"),
    (lambda net: HardOutliers(4, 1.0), "hard_outliers.skip"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_mistakes_are_named(make_net, make, message):
    with pytest.raises(UserError, match=message):
        make(make_net())


# Mining
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    draws = np.random.default_rng(0)
    for name, count in (("train", 32), ("outliers", 50)):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, count))
    return folder


class Seen(HardOutliers):
    """Mining that keeps what each epoch chose, and the losses that it went by."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.epochs = []

    def _values(self, trainer, module, loader, pool):
        values = super()._values(trainer, module, loader, pool)
        net = module.net.eval()
        with torch.no_grad():
            images = loader.outliers.read(pool).float() / 255
            expected = module.outlier_values(module.trained_outputs()(images))
        net.train()
        torch.testing.assert_close(values.float(), expected)
        self.last = (pool, values)
        return values

    def _choose(self, *settings):
        self.epochs.append(super()._choose(*settings))
        return self.epochs[-1]


class Record(OE):
    """OE that keeps the outliers of each batch."""

    def objective(self, batch):
        seen = self.__dict__.setdefault("seen", [])
        seen.append(batch.outliers)
        return super().objective(batch)


def fit(net, mining, arrays, folder, resume=None, make=Record, **settings):
    torch.manual_seed(1 if resume else 0)
    method = make(net, optimization=Optimization(0.05))
    data = OODData(
        "train", outliers="outliers", root=arrays, num_classes=4, batch_size=8,
        outlier_batch_size=3, augmentation="none",
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu",
        logger=[MetricsFile(folder)],
        default_root_dir=folder,
        callbacks=[mining, Checkpoints(every_n_steps=1, keep_every_n_steps=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        **{"max_epochs": 2, **settings},
    )
    trainer.fit(method, data, ckpt_path=resume)
    return method


def test_an_epoch_trains_with_the_hard_ones_of_its_pool(make_net, arrays, tmp_path):
    mining = Seen(2, 0.25)
    method = fit(make_net(dtype=torch.float32), mining, arrays, tmp_path)
    first, second = mining.epochs
    assert len(first) == len(second) == 12
    assert not torch.equal(first, second)
    pool, values = mining.last
    assert len(pool) == 24
    order = values.argsort(descending=True)
    assert set(second.tolist()) == set(pool[order[6:18]].tolist())
    pixels = np.load(arrays / "outliers.npz")["images"]
    for step, outliers in enumerate(method.seen[4:]):
        expected = pixels[second[3 * step : 3 * step + 3].numpy()]
        found = (outliers * 255).round().permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_epoch_keeps_its_outliers(make_net, arrays, tmp_path, step):
    def run(folder, **settings):
        folder.mkdir()
        net = make_net(seed=3 if settings else 0, dtype=torch.float32)
        mining = HardOutliers(2, 0.25)
        method = fit(net, mining, arrays, folder, **settings)
        return method.state_dict(), mining.chosen

    whole, chosen = run(tmp_path / "whole")
    checkpoint = tmp_path / "whole" / f"step-{step}.ckpt"
    again, chosen_again = run(tmp_path / "again", resume=checkpoint)
    assert torch.equal(chosen, chosen_again)
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


def test_a_pool_smaller_than_a_batch_is_named(make_net, arrays, tmp_path):
    data = np.load(arrays / "outliers.npz")
    small = tmp_path / "small"
    small.mkdir()
    np.savez(small / "outliers.npz", images=data["images"][:3])
    np.savez(small / "train.npz", **np.load(arrays / "train.npz"))
    with pytest.raises(
        UserError, match=r"hard_outliers\.pool: 3 outliers.*fewer than a batch of 3"
    ):
        fit(make_net(dtype=torch.float32), HardOutliers(2, 0.4), small, tmp_path)


def test_mining_without_outliers_is_named(make_net, arrays, tmp_path):
    from robust_ood.training import Standard

    with pytest.raises(UserError, match=r"hard_outliers\.pool: Standard trains without outliers"):
        fit(make_net(dtype=torch.float32), HardOutliers(2, 0.0), arrays, tmp_path, make=Standard)


def test_mining_finds_what_aloe_finds_hard(make_net, batch):
    method = ALOE(make_net(), ATTACK)
    logits = method.net(batch.outliers)
    torch.testing.assert_close(method.outlier_values(logits), uniform(logits))
