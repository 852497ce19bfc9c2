"""Patches: where they are, that nothing else changes, and how strong they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import robust_ood
from robust_ood import attacks, detectors
from robust_ood.attacks import PGD, Patch, PatchAttack, attack_labels, attack_score, budget_of
from robust_ood.attacks.apply import region_of_attack
from robust_ood.data import OODData
from robust_ood.detectors import Detector, Energy
from robust_ood.errors import UserError
from robust_ood.evaluation import print_results, sanity
from robust_ood.evaluation.picture_settings import CurveSettings
from robust_ood.evaluation.scene import curves, set_scene
from robust_ood.randomness import generators
from robust_ood.regions import Linf
from robust_ood.texts import radius_text


class Linear(Detector):
    """Scores `w . x`, whose worst patch is known."""

    def __init__(self):
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(3, 9, 12, generator=source))

    def forward(self, images):
        return (self.weight * images).flatten(1).sum(1)


@pytest.fixture
def images():
    levels = np.random.default_rng(0).integers(0, 256, (6, 3, 9, 12))
    return torch.from_numpy(levels).float() / 255


@given(
    st.integers(1, 9) | st.floats(0.001, 1),
    st.sampled_from(["random", "center", [0, 0]]),
    st.integers(0, 99),
    st.lists(st.integers(0, 10_000), min_size=1, max_size=5, unique=True),
)
def test_a_patch_is_one_square_inside_the_image_wherever_it_came_in(size, position, seed, indices):
    given_size = {"side": size} if isinstance(size, int) else {"share": size}
    patch = Patch(position=position, seed=seed, **given_size)
    images = torch.zeros(len(indices), 3, 9, 12)
    located = patch.at(torch.tensor(indices))
    masks = located.mask(images)
    side = size if isinstance(size, int) else min(max(1, round((size * 108) ** 0.5)), 9)
    for place, mask in enumerate(masks[:, 0]):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert len(rows) == len(columns) == side
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == side - 1
        assert mask.sum() == side**2
        alone = patch.at(torch.tensor(indices[place : place + 1])).mask(images[:1])
        assert torch.equal(alone[0], masks[place])
    draws = generators(seed, "start", indices=indices)
    for moved in (
        located.project(images + 2, images),
        located.sample(images + 0.5, draws) - 0.5,
        located.steepest(images + 1),
    ):
        assert not moved.masked_fill(masks, 0).any()


def test_random_places_differ_between_images_seeds_and_trials():
    indices = torch.arange(40)
    images = torch.zeros(40, 1, 32, 32)
    first = Patch(side=4).at(indices).mask(images)
    assert len({tuple(mask.flatten().nonzero()[0].tolist()) for mask in first}) > 30
    for other in (Patch(side=4, seed=1), Patch(side=4, trial=1)):
        same = (other.at(indices).mask(images) == first).flatten(1).all(1)
        assert same.float().mean() < 0.1


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("position", ["random", "center", [5, 8]])
@pytest.mark.parametrize("radius", [1.0, 0.1])
@pytest.mark.parametrize("name", ["patch", "pgd", "apgd"])
def test_attacks_find_the_worst_patch_of_a_linear_score(images, direction, position, radius, name):
    settings = {"side": 4, "position": position, "radius": radius}
    if name == "patch":
        attack = attacks.build("patch", **settings)
    else:
        attack = attacks.build(name, region={"name": "patch", **settings}, steps=40)
    indices = torch.tensor([5, 0, 3, 9, 1, 4])
    detector = Linear()
    attacked = attack_score(detector, images, attack, direction, indices=indices)
    region = region_of_attack(attack)
    mask = region.at(indices).mask(images)
    down = direction * detector.weight.sign()
    worst = torch.where(mask, (images - radius * down).clamp(0, 1), images)
    torch.testing.assert_close(attacked.values, detector(worst), rtol=0, atol=2e-3)
    assert torch.equal(attacked.images.masked_fill(mask, 0), images.masked_fill(mask, 0))


def test_several_places_are_the_worst_of_each(images):
    detector = Linear()
    one = attack_score(detector, images, attacks.build("patch", side=3), 1)
    three = attacks.build("patch", side=3, positions=3, restarts=2, steps=20)
    assert three.settings() == {"norm": "patch 3 px", "radius": 1.0, "steps": 20, "restarts": 6}
    found = attack_score(detector, images, three, 1)
    assert (found.values <= one.values + 1e-3).all()
    assert (found.values < one.values - 0.1).any()
    changed = (found.images != images).any(1)  # (N, H, W)
    assert (changed.flatten(1).sum(1) <= 9).all()


@pytest.mark.parametrize("name", ["pgd", "apgd", "fgsm", "targeted", "pgd-softmax"])
def test_patches_of_attacks_on_networks(make_net, images, name):
    net = make_net(dtype=torch.float32)
    steps = {} if name == "fgsm" else {"steps": 3}
    attack = attacks.build(name, region={"name": "patch", "share": 0.2}, **steps)
    assert attack.settings()["norm"] == "patch 20 %"
    indices = torch.arange(6) + 3
    mask = region_of_attack(attack).at(indices).mask(images)
    detector = Energy(net)
    for direction in (1, -1):
        moved = attack_score(detector, images, attack, direction, indices=indices)
        assert torch.equal(moved.images.masked_fill(mask, 0), images.masked_fill(mask, 0))
        assert (direction * moved.values <= direction * detector(images) + 1e-5).all()
    labels = net(images).argmax(1)
    wrong = attack_labels(net, images, labels, attack, indices=indices)
    assert torch.equal(wrong.images.masked_fill(mask, 0), images.masked_fill(mask, 0))


@pytest.mark.parametrize("radius", [1.0, 0.1])
def test_quantised_patches_are_levels(images, radius):
    attack = attacks.build("patch", side=4, radius=radius, steps=5, quantise=True)
    found = attack_score(Linear(), images, attack, 1)
    levels = found.images * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert (found.images - images).abs().max() <= radius + 1e-6
    assert ((found.images != images).any(1).flatten(1).sum(1) <= 16).all()


@pytest.fixture
def data(tmp_path):
    draws = np.random.default_rng(0)
    for name in ("test", "near"):
        pixels = draws.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=np.arange(6) % 4)
    return OODData(root=tmp_path, test="test.npz", near=["near.npz"], num_classes=4)


def test_rows_sanity_and_figures_of_patches(make_net, data, capsys):
    net = make_net(dtype=torch.float32)
    against = {
        "patch": attacks.build("patch", side=3, steps=4),
        "pgd": attacks.build("pgd", radius="2/255", steps=2),
    }
    scores = detectors.build_all(["energy", "msp"], net)
    results = robust_ood.evaluate(net, detectors=scores, attacks=against, data=data)
    assert not results.failures
    assert {row.norm for row in results.rows} == {"none", "Linf", "patch 3 px"}
    print_results(results)
    assert "patch 3 px" in capsys.readouterr().out
    # Figures show the ball; where there are patches alone, these.
    assert set_scene(data, against).label == "pgd"
    scene = set_scene(data, {"patch": against["patch"]})
    arrays, facts = curves(scores["energy"], scene, CurveSettings(steps=2, images=4))
    assert facts["norm"] == "patch"
    assert np.isfinite(arrays["in_scores"]).all()


def test_sanity_of_a_patch_that_is_weaker_than_noise(make_net, data):
    """The gradient of another score."""

    class Masked(Energy):
        def surrogate(self, images):
            return images.flatten(1).sum(1)

    net = make_net(dtype=torch.float32)
    inliers = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outliers = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)) ** 3
    alarms = sanity.check(Masked(net), inliers, outliers, attacks.build("patch", side=6))
    assert alarms


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "side: expected the patch's side in pixels, or its share"),
        ({"side": 3, "share": 0.1}, "side: expected the patch's side in pixels, or its share"),
        ({"side": 0}, "side: 0"),
        ({"share": 0.0}, "share: 0.0 is not in"),
        ({"share": 1.5}, "share: 1.5 is not in"),
        ({"side": 3, "radius": 0}, "radius: 0.0 is not in"),
        ({"side": 3, "radius": "300/255"}, "radius: 1.17.* is not in"),
        ({"side": 3, "position": "top"}, "position"),
        ({"side": 3, "position": [1]}, "position: expected random, center or"),
        ({"side": 3, "position": [-1, 2]}, "position: expected random, center or"),
        ({"side": 3, "positions": 0}, "positions: 0"),
        ({"side": 3, "positions": 2, "position": "center"}, "positions: 2 with the position"),
        ({"side": 3, "positions": 2, "keep": "objective"}, "positions: 2 with keep"),
        ({"side": 3, "norm": "L2"}, "norm"),
        ({"side": 3, "step": 3}, "step"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(UserError, match=message) as raised:
        attacks.build("patch", **settings)
    assert "\n" not in str(raised.value)


def test_what_takes_no_patch_says_so(images):
    with pytest.raises(UserError, match="position: a patch of 4 pixels at"):
        attack_score(Linear(), images, attacks.build("patch", side=4, position=[8, 8]), 1)
    with pytest.raises(UserError, match="attack: expected one in a patch, got Linf"):
        PatchAttack(PGD(Linf(0.1)))
    region = {"name": "patch", "side": 3}
    for name in ("square", "standard", "pgd-low-resolution"):
        size = {"size": 4} if name == "pgd-low-resolution" else {}
        with pytest.raises(UserError, match="Linf"):
            attacks.build(name, region=region, **size)
    with pytest.raises(UserError, match="patches belong to evaluations"):
        budget_of("inlier_attack", {"name": "pgd", "region": region})


def test_words_of_a_patch():
    assert radius_text("patch 5 px", 1.0) == "patch 5 px"
    assert radius_text("patch 5 %", 0.2) == "patch 5 %, 51/255"
    assert Patch(side=3).scaled(2) == Patch(side=6)
    assert Patch(share=0.1).scaled(2) == Patch(share=0.4)
