"""PGD, FGSM and MI-FGSM equal a loop written out and independent libraries, iterate for iterate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robust_ood import L2, Linf, attacks, minimize
from robust_ood.attacks import PGD, fgsm
from robust_ood.attacks.objectives import wrong_label
from robust_ood.rules import Steepest

RADIUS, STEP, STEPS = 8 / 255, 2 / 255, 8
L2_RADIUS, L2_STEP = 0.5, 0.1


@pytest.fixture(scope="module")
def problem(make_net, make_images):
    net = make_net(seed=3, dtype=torch.float32).requires_grad_(False)
    images = make_images(8, seed=3, size=8, dtype=torch.float32)
    return net, images, torch.arange(8) % 4


def iterates(problem, region, step_size, steps=STEPS, **settings):
    """Iterates 1, 2, ... of this package's PGD on the cross-entropy."""
    net, images, labels = problem
    objective = wrong_label(net, labels, "cross_entropy")
    for count in range(1, steps + 1):
        found = minimize(
            objective, images, region, steps=count, step_size=step_size, keep="last", **settings
        )
        yield count, found.images


def naive(problem, norm, radius, step_size, steps):
    """PGD image by image, in the textbook's order."""
    net, images, labels = problem
    results = []
    for image, label in zip(images, labels, strict=True):
        current = image
        for _ in range(steps):
            leaf = current.clone().requires_grad_()
            F.cross_entropy(net(leaf[None]), label[None]).backward()
            gradient = leaf.grad
            if norm == "Linf":
                moved = (current + step_size * gradient.sign() - image).clamp(-radius, radius)
            else:
                moved = current + step_size * gradient / gradient.norm() - image
                moved = moved * min(1.0, radius / moved.norm().item())
            current = (image + moved).clamp(0, 1)
        results.append(current)
    return torch.stack(results)


def assert_same(ours, theirs, images):
    assert (ours != images).float().mean() > 0.5  # something happened
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("region", "step_size"), [(Linf(RADIUS), STEP), (L2(L2_RADIUS), L2_STEP)], ids=["Linf", "L2"]
)
def test_every_iterate_equals_a_loop_written_out(problem, region, step_size):
    for count, ours in iterates(problem, region, step_size):
        assert_same(ours, naive(problem, region.name, region.radius, step_size, count), problem[1])


def test_fgsm_equals_its_formula(problem):
    net, images, labels = problem
    leaf = images.clone().requires_grad_()
    F.cross_entropy(net(leaf), labels, reduction="sum").backward()
    expected = (images + RADIUS * leaf.grad.sign()).clamp(0, 1)
    settings = fgsm(Linf(RADIUS), precision="float32")
    assert (settings.steps, settings.restarts, settings.random_start) == (1, 1, False)
    (candidate,) = settings.on_label(net, images, labels, torch.arange(8))
    candidate = candidate.images
    changed = (
        (candidate != images).flatten(1).any(1)
    )  # the others got an easier image by the step, and stay clean
    assert changed.sum() >= 6
    torch.testing.assert_close(candidate[changed], expected[changed], rtol=0, atol=1e-6)


def test_best_iterate_equals_a_loop_that_remembers(problem):
    net, images, labels = problem
    trail = torch.stack(
        [images, *(found for _, found in iterates(problem, Linf(RADIUS), STEP))]
    )  # (steps + 1, N, ...)
    logits = torch.stack([net(x) for x in trail])  # (steps + 1, N, K)
    own = logits.gather(2, labels.expand(len(trail), -1)[..., None])[..., 0]
    others = logits.masked_fill(F.one_hot(labels, 4).bool(), -torch.inf).amax(2)
    expected = trail[
        (own - others).argmin(0), torch.arange(8)
    ]  # smallest margin, not largest cross-entropy
    attack = PGD(Linf(RADIUS), steps=STEPS, step_size=STEP, random_start=False, precision="float32")
    torch.testing.assert_close(
        attacks.misclassify(net, images, labels, attack), expected, rtol=0, atol=1e-6
    )


# --------------------------------------------------------------------------------------------------------- torchattacks


def test_every_linf_iterate_equals_torchattacks(problem):
    torchattacks = pytest.importorskip(
        "torchattacks", reason="torchattacks comes with the 'parity' extra"
    )
    net, images, labels = problem
    for count, ours in iterates(problem, Linf(RADIUS), STEP):
        theirs = torchattacks.PGD(net, eps=RADIUS, alpha=STEP, steps=count, random_start=False)(
            images, labels
        )
        assert_same(ours, theirs, images)


def test_every_l2_iterate_equals_torchattacks(problem):
    torchattacks = pytest.importorskip(
        "torchattacks", reason="torchattacks comes with the 'parity' extra"
    )
    net, images, labels = problem
    for count, ours in iterates(problem, L2(L2_RADIUS), L2_STEP):
        theirs = torchattacks.PGDL2(
            net, eps=L2_RADIUS, alpha=L2_STEP, steps=count, random_start=False
        )(images, labels)
        assert_same(ours, theirs, images)


def test_fgsm_and_mi_fgsm_equal_torchattacks(problem):
    torchattacks = pytest.importorskip(
        "torchattacks", reason="torchattacks comes with the 'parity' extra"
    )
    net, images, labels = problem
    ((_, ours),) = iterates(problem, Linf(RADIUS), RADIUS, steps=1)
    assert_same(ours, torchattacks.FGSM(net, eps=RADIUS)(images, labels), images)
    for count, ours in iterates(problem, Linf(RADIUS), STEP, rule=Steepest(momentum=0.75)):
        theirs = torchattacks.MIFGSM(net, eps=RADIUS, alpha=STEP, steps=count, decay=0.75)(
            images, labels
        )
        assert_same(ours, theirs, images)


# -------------------------------------------------------------------------------------------------------------- Foolbox


@pytest.mark.parametrize(
    ("name", "region", "step_size"),
    [("LinfPGD", Linf(RADIUS), STEP), ("L2PGD", L2(L2_RADIUS), L2_STEP)],
    ids=["Linf", "L2"],
)
def test_every_iterate_equals_foolbox(problem, name, region, step_size):
    foolbox = pytest.importorskip("foolbox", reason="Foolbox is not installed")
    net, images, labels = problem
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    for count, ours in iterates(problem, region, step_size):
        attack = getattr(foolbox.attacks, name)(
            abs_stepsize=step_size, steps=count, random_start=False
        )
        assert_same(ours, attack.run(model, images, labels, epsilon=region.radius), images)
