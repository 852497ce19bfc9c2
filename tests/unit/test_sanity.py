"""Five planted defects each raise the right alarm; healthy detectors on real digits raise none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robust_ood import L2, Linf
from robust_ood.attacks import PGD, Square, aloe_softmax, attack_score, standard
from robust_ood.data.sources.digits import digits, photograph_patches
from robust_ood.detectors import MSP, ODIN, PRO, AttackSurface, Detector, OutputsDetector
from robust_ood.evaluation import Accuracy, sanity
from robust_ood.evaluation.chance import check_accuracy
from robust_ood.evaluation.probe import Probe
from robust_ood.metrics import auroc
from robust_ood.models import WideResNet

PGD_10 = PGD(Linf(8 / 255), steps=10)


def images_of(chosen, count):
    return F.avg_pool2d(
        torch.from_numpy(chosen.images[:count]).permute(0, 3, 1, 2).float() / 255, 2
    )  # (N, 3, 16, 16)


@pytest.fixture(scope="session")
def digits_net():
    """A small network trained on the digits and on patches of a photograph as outliers: `(net,
    inliers, outliers)`.
    """
    train = digits("train")
    images, labels = images_of(train, 800), torch.from_numpy(train.labels[:800])
    noise = images_of(photograph_patches("china", 500, "china"), 500)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = WideResNet(depth=10, width=1, num_classes=10)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            for batch in torch.randperm(800).split(80):
                logits = net(torch.cat([images[batch], noise[batch % 500]]))
                unsure = logits[len(batch) :].logsumexp(1) - logits[len(batch) :].mean(1)
                loss = F.cross_entropy(logits[: len(batch)], labels[batch]) + 0.5 * unsure.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    net.eval().zero_grad()
    return (
        net,
        images_of(digits("test"), 32),
        images_of(photograph_patches("flower", 32, "flower"), 32),
    )


class Detached(MSP):
    def forward(self, images):
        return super().forward(images).detach()

    surrogate = Detector.surrogate


class Cut(MSP):
    """Forgets where its images come from, not which weights it has."""

    def surrogate(self, images):
        return super().surrogate(images.detach())


class Quantised(MSP):
    """Rounded to one decimal, with the gradient of rounding, which is zero."""

    def forward(self, images):
        return (super().forward(images) * 10).round() / 10

    surrogate = Detector.surrogate


class Noisy(MSP):
    draws = torch.Generator().manual_seed(0)

    def forward(self, images):
        scores = super().forward(images)
        return scores + 0.05 * torch.randn(scores.shape, generator=self.draws)


class Saturated(OutputsDetector):
    """A softmax in float16 of large logits: exactly 1, without gradient."""

    def score(self, out):
        return (20 * out.logits).half().softmax(1).amax(1).float()


class WrongSign(OutputsDetector):
    """Higher for OOD images."""

    def score(self, out):
        return -out.logits.softmax(1).amax(1)


class WrongSurrogate(MSP):
    """A surrogate that leads the wrong way."""

    def attack_surface(self):
        return AttackSurface((self.surrogate,))

    def surrogate_score(self, out):
        return -super().surrogate_score(out)


@pytest.mark.parametrize(
    ("defect", "alarm"),
    [
        (Detached, "carries no gradient"),
        (Cut, "carries no gradient"),
        (Quantised, "input gradient of exactly zero"),
        (Noisy, "two evaluations of the same images differ"),
        (Saturated, "input gradient of exactly zero"),
        (WrongSign, "higher must mean in-distribution"),
        (WrongSurrogate, "the surrogate has the wrong sign"),
    ],
)
def test_planted_defects_raise_the_right_alarm(digits_net, defect, alarm):
    net, inliers, outliers = digits_net
    warnings = sanity.check(defect(net), inliers, outliers, PGD_10, name="planted", limit=8)
    assert any(alarm in warning for warning in warnings), warnings
    assert all(warning.startswith("planted: ") and "\n" not in warning for warning in warnings)


@pytest.mark.parametrize("kind", [MSP, lambda net: PRO(MSP(net), steps=1)])
def test_healthy_detectors_raise_none(digits_net, kind):
    """On a network with BatchNorm; `tests/properties/test_detectors_attackable.py` checks all
    detectors on another.
    """
    net, inliers, outliers = digits_net
    assert sanity.check(kind(net), inliers, outliers, PGD_10, limit=16) == []


def test_a_healthy_detector_raises_none_in_l2(digits_net):
    net, inliers, outliers = digits_net
    assert sanity.check(MSP(net), inliers, outliers, PGD(L2(0.5), steps=10), limit=16) == []


def test_non_finite_scores_are_named(digits_net):
    class Broken(MSP):
        def score(self, out):
            return super().score(out) + torch.where(out.logits.amax(1) > 3, torch.nan, 0.0)

    net, inliers, outliers = digits_net
    (warning,) = sanity.check(Broken(net), inliers, outliers, PGD(Linf(0.0)), limit=16)
    assert "not finite" in warning


def test_a_weak_published_attack_is_called_weak(digits_net):
    net, inliers, outliers = digits_net
    weak = PGD(Linf(16 / 255), steps=1, step_size=0.0, random_start=False)
    (warning,) = sanity.check(MSP(net), inliers, outliers, weak, limit=16)
    assert "the reported attack PGD (AUROC" in warning
    assert "far weaker than one through the detector" in warning


@pytest.mark.parametrize("beside", [PGD_10, standard(8 / 255)])
def test_a_weak_attack_beside_an_adaptive_one_raises_no_alarm(digits_net, beside):
    """Headlines show the strongest; the alarm would hide those of masked gradients."""
    net, inliers, outliers = digits_net
    weak = PGD(Linf(8 / 255), steps=1, step_size=0.0, random_start=False)
    assert sanity.check(MSP(net), inliers, outliers, weak, beside, limit=16) == []


def test_masked_gradients_are_found_out(digits_net):
    class Masked(OutputsDetector):
        """Finite, deterministic and correct, but its gradient is that of something else."""

        def attack_surface(self):
            return AttackSurface((self.surrogate,))

        def score(self, out):
            return out.logits.softmax(1).amax(1)

        def surrogate_score(self, out):
            return 1e-3 * torch.sin(1e4 * out.features.sum(1))

    net, inliers, outliers = digits_net
    warnings = sanity.check(Masked(net), inliers, outliers, PGD(Linf(16 / 255)), limit=16)
    assert any("beats the attack through its gradients" in warning for warning in warnings), (
        warnings
    )


def test_a_flat_loss_is_named(digits_net):
    class Flat(OutputsDetector):
        """A score that gradients reach but do not change."""

        def attack_surface(self):
            return AttackSurface((self.surrogate,))

        def score(self, out):
            return out.logits.softmax(1).amax(1)

        def surrogate_score(self, out):
            return out.logits.amax(1) * 1e-12 + 1.0

    net, inliers, outliers = digits_net
    warnings = sanity.check(Flat(net), inliers, outliers, PGD_10, limit=16)
    assert any("loss is flat" in warning for warning in warnings), warnings


def test_the_checks_are_cheap_shared_and_leave_no_trace(digits_net):
    net, inliers, outliers = digits_net
    seen = []
    hook = net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))

    def cost(*attacks):
        seen.clear()
        sanity.check(MSP(net), inliers, outliers, *attacks, limit=4)
        return sum(seen) / 8  # forward passes of all 8 images

    net.train()
    try:
        alone = cost(standard(8 / 255))
        assert alone < 110
        assert cost(standard(8 / 255), PGD_10, PGD(Linf(8 / 255), steps=40, restarts=2)) == alone
        softmax = PGD(Linf(8 / 255), steps=9, objective="softmax")
        assert cost(standard(8 / 255), softmax) == alone  # it cannot be the strongest
        assert cost(softmax) > alone  # tried itself
        apart = cost(PGD_10, PGD(Linf(2 / 255)))
        assert apart < 2 * alone
        assert (
            cost(PGD_10, PGD(Linf(16 / 255))) <= apart - 8
        )  # twice 8/255 is attacked once for both budgets
        assert all(part.training for part in net.modules())
    finally:
        net.eval()
        hook.remove()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("kind", [MSP, ODIN, lambda net: PRO(MSP(net), steps=1)])
@pytest.mark.parametrize("attack", [PGD(Linf(8 / 255), steps=5), Square(Linf(8 / 255), queries=20)])
def test_both_sides_in_one_batch_are_attacked_as_each_by_itself(digits_net, kind, attack):
    net, inliers, outliers = digits_net
    probe = Probe(kind(net), inliers[:8], outliers[:16])
    low = attack_score(probe.detector, probe.inliers, attack, 1).values
    high = attack_score(probe.detector, probe.outliers, attack, -1).values
    assert probe.probed(attack) == pytest.approx(auroc(low, high))
    assert not torch.equal(low, probe.scores()[:8])


def test_the_published_attack_is_tried(digits_net):
    net, inliers, outliers = digits_net
    published, region = aloe_softmax(Linf(8 / 255)), Linf(8 / 255)
    probe = Probe(MSP(net), inliers[:16], outliers[:16])
    adaptive = min(probe.probed(PGD(region, steps=steps, precision="float32")) for steps in (5, 15))
    weaker = (
        probe.attacked(published) > adaptive + 0.1
    )  # which of the two it is depends on the network
    warnings = sanity.check(MSP(net), inliers, outliers, published, limit=16)
    assert ["report an adaptive one" in warning for warning in warnings] == [True] * weaker


@pytest.mark.parametrize(
    ("accuracy", "classes", "n", "attack", "alarms"),
    [
        (0.1, 10, 100, "none", 1),  # guessing
        (0.0, 10, 100, "none", 1),  # every label shifted
        (0.19, 10, 100, "none", 1),
        (0.2, 10, 100, "none", 0),
        (0.5, 2, 100, "none", 1),
        (0.6, 2, 100, "none", 0),
        (0.05, 1000, 100, "none", 1),
        (0.0, 10, 100, "pgd", 0),  # what attacks are for
        (0.0, 10, 8, "none", 0),  # too few images to tell
        (0.0, 1, 100, "none", 0),  # no classes
    ],
)
def test_accuracy_near_chance_raises_an_alarm(accuracy, classes, n, attack, alarms):
    row = Accuracy("OE", "digits", attack, "Linf", 0.1, 10, 1, n, accuracy, 1.0)
    lines = check_accuracy(row, classes)
    assert len(lines) == alarms
    for line in lines:
        assert line.startswith(f"OE, classifier: accuracy {accuracy:.3f} on digits is near chance")
        assert "mean or std" in line
