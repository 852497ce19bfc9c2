"""Our attacks against torchattacks, and in L1 AutoAttack, iterate for iterate, from one start."""

import pytest
import torch
from torch import nn

from robust_ood import L1, L2, Linf, losses, minimize, rules
from robust_ood.attacks import Square
from robust_ood.attacks.square import _bump
from robust_ood.rules import AutoPGD

torchattacks = pytest.importorskip("torchattacks")
CASES = [("Linf", Linf, 0.06), ("L2", L2, 0.4)]


@pytest.fixture
def problem():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    images = torch.rand(16, 3, 6, 6)
    return net, images, net(images).argmax(1)


@pytest.mark.parametrize(("norm", "region", "radius"), CASES)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("steps", [10, 30])
def test_auto_pgd_visits_the_same_best_images(problem, norm, region, radius, loss, steps):
    net, images, labels = problem
    theirs = torchattacks.APGD(net, norm=norm, eps=radius, steps=steps, loss=loss)
    torch.manual_seed(7)
    their_best, _, their_loss, _ = theirs.attack_single_run(images, labels)
    torch.manual_seed(7)
    noise = 2 * torch.rand(images.shape) - 1 if norm == "Linf" else torch.randn(images.shape)
    size = noise.flatten(1).abs().amax(1) if norm == "Linf" else noise.flatten(1).norm(dim=1)
    start = images + radius * noise / size.view(-1, 1, 1, 1)

    def objective(x):
        if loss == "ce":
            return -losses.cross_entropy(net(x), labels)
        return losses.difference_of_logits_ratio(net(x), labels)

    ours = minimize(
        objective,
        images,
        region(radius),
        steps=steps,
        step_size=2 * radius,
        rule=AutoPGD(),
        start=start.clamp(0, 1),
        trace=True,
    )
    # Their first step counts as progress where the loss is above zero, ours and the paper's where
    # it rose.
    first, second = -ours.trace.values[0], -ours.trace.values[1]
    same = (second > 0) == (second > first)
    assert same.sum() >= 13
    assert torch.allclose(-ours.values[same], their_loss[same], atol=2e-4)
    if norm == "Linf":
        assert torch.allclose(ours.images[same], their_best[same], atol=1e-4)


@pytest.mark.parametrize(("norm", "region", "radius"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_pgd_visits_the_same_iterates(problem, norm, region, radius, steps):
    net, images, labels = problem
    kind = torchattacks.PGD if norm == "Linf" else torchattacks.PGDL2
    theirs = kind(net, eps=radius, alpha=radius / 3, steps=steps, random_start=False)(
        images, labels
    )
    ours = minimize(
        lambda x: -losses.cross_entropy(net(x), labels),
        images,
        region(radius),
        steps=steps,
        step_size=radius / 3,
        keep="last",
    )
    assert torch.allclose(ours.images, theirs, atol=1e-5)


@pytest.mark.parametrize(("norm", "region", "radius"), CASES)
def test_square_is_as_strong_with_the_same_queries(problem, norm, region, radius):
    net, images, labels = problem
    theirs = torchattacks.Square(
        net, norm=norm, eps=radius, n_queries=150, p_init=0.8, loss="margin", seed=3
    )
    ours = Square(region(radius), queries=150).run(
        lambda x: losses.margin(net(x), labels), images, torch.arange(len(images))
    )
    fooled = [
        (net(found).argmax(1) != labels).sum().item() for found in (theirs(images, labels), ours)
    ]
    assert fooled[1] >= fooled[0] - 1


@pytest.mark.parametrize("size", [3, 6, 7, 15, 29])
def test_square_moves_the_same_bumps(problem, size):
    theirs = torchattacks.Square(problem[0], norm="L2").eta(size)
    upright = theirs if (theirs[0] > 0).all() else theirs.T  # turned at random
    assert torch.allclose(_bump(size), upright, atol=1e-6)


@pytest.mark.parametrize(("norm", "region", "radius"), CASES)
def test_square_shrinks_its_squares_by_the_same_schedule(problem, norm, region, radius):
    theirs = torchattacks.Square(
        problem[0], norm=norm, n_queries=700, p_init=0.8, resc_schedule=True
    )
    ours = Square(region(radius), queries=700)
    for query in range(700):
        side = max(round((theirs.p_selection(query) * 32 * 32) ** 0.5), 1 if norm == "Linf" else 3)
        assert ours._size(query, 32, 32) == side + (norm == "L2" and side % 2 == 0)


@pytest.mark.parametrize(("norm", "region", "radius"), [("Linf", Linf, 0.03), ("L2", L2, 0.3)])
def test_square_lowers_margins_as_far_as_theirs_where_neither_stops_early(norm, region, radius):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
    images = torch.rand(32, 3, 10, 10)
    labels = net(images).argmax(1)

    def margins(x):
        return losses.margin(net(x), labels)

    theirs = torchattacks.Square(
        net, norm=norm, eps=radius, n_queries=150, p_init=0.8, loss="margin", seed=0
    )
    theirs.margin_and_loss = lambda x, y: (
        margins(x) + 100,
        margins(x),
    )  # never taken for misclassified
    theirs.init_hyperparam(images)
    with torch.no_grad():
        _, their_best = theirs.attack_single_run(images, labels)
        our_best = Square(region(radius), queries=150).run(margins, images, torch.arange(32))
        falls = [(margins(images) - margins(best)).mean() for best in (their_best, our_best)]
    assert falls[1] > 0.9 * falls[0] > 0


@pytest.mark.parametrize("radius", [0.3, 2.0, 12.0, 60.0])
def test_l1_projection_is_autoattacks(radius):
    theirs = pytest.importorskip("pyautoattack.autopgd_base")
    torch.manual_seed(3)
    for scale in (0.01, 0.3, 1.0, 5.0):
        images = torch.rand(8, 3, 6, 6).round(decimals=1)
        moved = images + scale * torch.randn(images.shape)
        expected = moved + theirs.L1_projection(images, moved - images, radius)
        torch.testing.assert_close(L1(radius).project(moved, images), expected, rtol=0, atol=2e-4)


def beyond_rounding(changes):
    """How many pixels of each image changed: AutoAttack's own count takes rounding for changes."""
    return (changes.abs() > 1e-6).flatten(1).sum(1)


@pytest.mark.parametrize("radius", [1.0, 6.0])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("counts_rounding", [False, True])
def test_auto_pgd_in_l1_finds_what_autoattack_finds(
    problem, radius, loss, steps, counts_rounding, monkeypatch
):
    # Their steps count pixels that cannot move.
    monkeypatch.setattr(rules, "_followed", lambda images, gradient: gradient)
    theirs = pytest.importorskip("pyautoattack.autopgd_base")
    if not counts_rounding:
        monkeypatch.setattr(theirs, "L0_norm", beyond_rounding)
    net, images, labels = problem
    attack = theirs.APGDAttack(
        net, n_iter=steps, norm="L1", eps=radius, loss=loss, device="cpu", rho=0.75
    )
    attack.init_hyperparam(images)
    torch.manual_seed(7)
    their_best, _, their_loss, _ = attack.attack_single_run(images, labels)
    torch.manual_seed(7)
    start = L1(radius).project(images + torch.randn(images.shape), images)

    def objective(x):
        if loss == "ce":
            return -losses.cross_entropy(net(x), labels)
        return losses.difference_of_logits_ratio(net(x), labels)

    ours = minimize(
        objective,
        images,
        L1(radius),
        steps=steps,
        step_size=radius,
        rule=AutoPGD(),
        start=start,
    )
    assert (-ours.values >= their_loss - 2e-3).all()
    if counts_rounding:  # the share of pixels that a later step changes depends on it
        return
    torch.testing.assert_close(-ours.values, their_loss, rtol=0, atol=2e-3)
    torch.testing.assert_close(ours.images, their_best, rtol=0, atol=1e-3)


def test_auto_pgd_in_l1_is_stronger_than_autoattack_where_pixels_saturate(problem):
    theirs = pytest.importorskip("pyautoattack.autopgd_base")
    net, images, labels = problem
    for radius in (12.0, 30.0):
        attack = theirs.APGDAttack(net, n_iter=50, norm="L1", eps=radius, loss="ce", device="cpu")
        attack.init_hyperparam(images)
        torch.manual_seed(7)
        _, _, their_loss, _ = attack.attack_single_run(images, labels)
        ours = minimize(
            lambda x: -losses.cross_entropy(net(x), labels),
            images,
            L1(radius),
            steps=50,
            step_size=radius,
            rule=AutoPGD(),
        )
        assert -ours.values.mean() >= their_loss.mean() - 0.01
