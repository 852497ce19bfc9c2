"""Attacked images that survive 8-bit files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from robust_ood import attacks
from robust_ood.attacks import PGD, Quantised, attack_labels, attack_score
from robust_ood.attacks.quantised import within
from robust_ood.data import to_float
from robust_ood.detectors import build_all
from robust_ood.errors import UserError
from robust_ood.metrics import auroc
from robust_ood.regions import L2, Linf, region_of

ATTACKS = {
    "pgd": {"name": "pgd", "radius": "4/255", "steps": 5},
    "between levels": {"name": "pgd", "radius": "2.6/255", "steps": 5},
    "apgd, L2": {"name": "apgd", "norm": "L2", "radius": 0.4, "steps": 6},
    "fgsm, 1/255": {"name": "fgsm", "radius": "1/255"},
    "square": {"name": "square", "radius": "4/255", "queries": 10},
    "targeted": {"name": "targeted", "radius": "4/255", "steps": 4, "classes": 2},
    "features": {"name": "pgd-features", "radius": "4/255", "steps": 4},
    "standard": {"name": "standard", "radius": "1/255"},
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 7 * 7, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    ).eval()


@pytest.fixture(scope="module")
def images():
    """Images of 8 bits a pixel, with the extreme levels among them."""
    draws = np.random.default_rng(0)
    levels = draws.integers(-40, 296, (8, 3, 16, 16)).clip(0, 255).astype(np.uint8)
    return to_float(torch.from_numpy(levels))


def through_png(images):
    """Return images as they come back from files."""
    read = []
    for image in images:
        levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(levels).save(file, format="PNG")
        read.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return to_float(torch.stack(read))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("direction", [1, -1])
def test_a_png_holds_what_the_attack_gave(net, images, name, direction):
    detector = build_all(["energy"], net)["energy"]
    attack = attacks.build({**ATTACKS[name], "quantise": True})
    attacked = attack_score(detector, images, attack, direction)
    read = through_png(attacked.images)
    assert torch.equal(read, attacked.images)
    assert torch.equal(detector(read), detector(attacked.images))
    region = region_of(attack.settings()["norm"], attack.settings()["radius"])
    assert region.norm(read - images).max() <= region.radius + 1e-6
    with torch.no_grad():
        assert bool((direction * detector(read) < direction * detector(images)).any())


@pytest.mark.parametrize("name", ["pgd", "apgd, L2", "targeted", "standard"])
def test_so_it_is_on_classifiers(net, images, name):
    labels = net(images).argmax(1)
    attack = attacks.build({**ATTACKS[name], "quantise": True})
    attacked = attack_labels(net, images, labels, attack)
    assert torch.equal(through_png(attacked.images), attacked.images)


def test_the_auroc_after_files_is_the_one_before_on_three_detectors(net, images):
    others = through_png(1 - images)
    for detector in build_all(["energy", "msp", "odin"], net).values():
        attack = attacks.build({"name": "pgd", "radius": "2/255", "steps": 10, "quantise": True})
        low = attack_score(detector, images, attack, 1)
        high = attack_score(detector, others, attack, -1)
        with torch.no_grad():
            after = auroc(detector(through_png(low.images)), detector(through_png(high.images)))
        assert after == pytest.approx(auroc(low.values, high.values), abs=0.02)


def test_little_of_the_attack_is_lost_where_files_would_undo_it(net, images):
    """At one level, rounding an ordinary attack afterwards keeps less than rounding within it."""
    detector = build_all(["energy"], net)["energy"]
    plain = PGD(Linf(1 / 255), steps=20, precision="float32")
    ideal = attack_score(detector, images, plain, 1).values
    rounded = attack_score(detector, images, Quantised(plain), 1).values
    with torch.no_grad():
        clean = detector(images)
        afterwards = detector(through_png(attack_score(detector, images, plain, 1).images))
    assert bool((rounded <= clean).all())
    assert (clean - rounded).mean() > 0.9 * (clean - ideal).mean()
    assert rounded.mean() <= afterwards.mean() + 1e-6


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(["Linf", "L2"]),
    st.floats(1.0, 40.0),
    st.integers(0, 2**32 - 1),
)
def test_rounded_images_are_on_levels_within_the_radius(norm, radius, seed):
    draws = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 256, (3, 3, 4, 4), generator=draws) / 255
    region = (Linf if norm == "Linf" else L2)(min(radius / 255, 1.0))
    moved = region.sample(clean, draws)
    rounded = within(moved, clean, norm, region.radius)
    levels = rounded * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert rounded.min() >= 0
    assert rounded.max() <= 1
    assert region.norm(rounded - clean).max() <= region.radius + 2e-6
    if norm == "Linf":  # no pixel is a whole level off
        assert (rounded - moved).abs().max() < 1 / 255


def test_what_no_file_could_hold_is_refused(net, images):
    with pytest.raises(UserError, match=r"attacks\.pgd\.quantise: no other 8-bit image"):
        attacks.build({"name": "pgd", "radius": "0.5/255", "quantise": True})
    with pytest.raises(UserError, match=r"attacks\.pgd\.quantise: expected true or false"):
        attacks.build({"name": "pgd", "radius": "4/255", "quantise": "often"})
    detector = build_all(["energy"], net)["energy"]
    attack = attacks.build({"name": "pgd", "radius": "4/255", "quantise": True})
    with pytest.raises(UserError, match="more than 8 bits"):
        attack_score(detector, images * 0.999, attack, 1)


def test_settings_are_those_of_the_attack_run_twice():
    attack = attacks.build({"name": "standard", "radius": "8/255", "quantise": True})
    whole = attacks.standard("8/255").settings()
    assert attack.settings() == {**whole, "restarts": 2 * whole["restarts"]}
    assert attack.stops_early
    assert not Quantised(PGD(Linf(8 / 255))).stops_early
