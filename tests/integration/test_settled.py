"""Images that no longer change a number are left alone, and no number changes by it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_ood import Linf
from robust_ood.attacks import PGD, Square, Suite, apgd, attack_score, standard
from robust_ood.data import OODData
from robust_ood.detectors import Detector, Energy, build_all
from robust_ood.evaluation import evaluate
from robust_ood.evaluation.settled import Bars
from robust_ood.evaluation.store import Cell, Store
from robust_ood.metrics import deployed_rates, deployed_threshold, ood_metrics
from robust_ood.models import ConvNet

RADIUS = 48 / 255


def network():
    torch.manual_seed(0)
    return ConvNet((8,), (8,), 2, (8,), 8).eval()


def suite():
    """A short suite: three members and the finish."""
    region = Linf(RADIUS)
    return Suite(
        on_detectors={
            "pgd": PGD(region, steps=6),
            "apgd": apgd(region, steps=5),
            "square": Square(region, queries=10),
        },
        finish=PGD(region, steps=4, precision="float32"),
    )


def evaluated(net, detectors, near=(), **options):
    data = OODData(
        "digits-0-7/train",
        test="digits-0-7/test",
        near=list(near),
        far=["noise/gaussian"],
        num_classes=8,
        augmentation="none",
    )
    return evaluate(
        net,
        detectors=detectors,
        attacks={"suite": suite()},
        data=data,
        limit=24,
        sanity=False,
        **options,
    )


def essence(results):
    """Return the rows without AUPR, in which ties within a class count, and without times."""
    return [replace(row, seconds=0.0, aupr_in=0.0, aupr_out=0.0) for row in results.rows]


def precisions(results):
    return torch.tensor([(row.aupr_in, row.aupr_out) for row in results.rows])


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def detectors(net):
    return dict(build_all(["energy", "msp", "knn"], net))


@pytest.fixture(scope="module")
def whole(net, detectors):
    return evaluated(net, detectors, near=["digits-0-7/held-out"], skip_settled=False)


def test_rows_and_intervals_are_those_of_the_whole_attack(net, detectors, whole):
    short = evaluated(net, detectors, near=["digits-0-7/held-out"])
    assert essence(short) == essence(whole)
    assert short.intervals == whole.intervals
    untied = [row.detector == "energy" for row in short.rows]
    difference = (precisions(short) - precisions(whole)).abs()
    assert difference[untied].max() < 1e-6
    assert difference.max() < 0.01
    assert max(record.saved for record in short.members) > 0.3
    assert max(record.saved for record in whole.members) == 0


def test_a_set_that_moves_the_bar_has_the_images_attacked_again(net, detectors, whole, tmp_path):
    fewer = evaluated(net, detectors, folder=tmp_path)
    assert max(record.saved for record in fewer.members) > 0.3
    more = evaluated(net, detectors, near=["digits-0-7/held-out"], folder=tmp_path)
    assert essence(more) == essence(whole)
    assert more.intervals == whole.intervals


def test_without_the_rule_nothing_that_it_left_alone_is_taken(net, detectors, whole, tmp_path):
    evaluated(net, detectors, near=["digits-0-7/held-out"], folder=tmp_path)
    again = evaluated(
        net, detectors, near=["digits-0-7/held-out"], folder=tmp_path, skip_settled=False
    )
    assert max(record.saved for record in again.members) == 0
    assert essence(again) == essence(whole)


def test_a_second_evaluation_computes_nothing(net, detectors, tmp_path):
    first = evaluated(net, detectors, folder=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    again = evaluated(net, detectors, folder=tmp_path)
    assert essence(again) == essence(first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == files


class Dice(Detector):
    """An energy that every call shifts by another draw: "beyond the bar" says nothing of it."""

    def __init__(self, net):
        super().__init__()
        self.energy = Energy(net)
        self.draws = torch.Generator().manual_seed(0)

    @property
    def networks(self):
        return self.energy.networks

    def forward(self, images):
        shift = torch.randn(len(images), generator=self.draws)
        return self.energy(images) + 20 * shift


def test_a_random_score_is_attacked_to_the_end(net):
    results = evaluated(net, {"dice": Dice(net)})
    assert not results.failures
    assert max(record.saved for record in results.members) == 0


def test_a_member_that_leaves_images_alone_may_be_a_suite_itself(net):
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    detector = Energy(network_of(images))
    plain = attack_score(detector, images, suite(), 1)
    bar = float(plain.values.median())
    nested = Suite(
        on_detectors={"inner": suite().until(bar), "square": suite().on_detectors["square"]}
    )
    reached = attack_score(detector, images, nested, 1)
    assert (detector(reached.images) - reached.values).abs().max() < 1e-4
    assert torch.equal(reached.values < bar, plain.values < bar)


def network_of(images):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(images[0].numel(), 16), torch.nn.ReLU(),
        torch.nn.Linear(16, 5),
    ).eval()  # fmt: skip


def test_the_standard_suite_runs_later_members_only_on_what_is_left():
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    detector = Energy(network_of(images))
    whole = attack_score(detector, images, standard(RADIUS), 1)
    assert set(whole.attempts) == {len(images)}
    enough = float(whole.values.median())
    attacked = attack_score(detector, images, standard(RADIUS), 1, enough=enough)
    assert torch.equal(attacked.values < enough, whole.values < enough)
    unsettled = whole.values >= enough
    assert (attacked.values - whole.values)[unsettled].abs().max() < 1e-5
    attempts = attacked.attempts[1:]  # the clean images come before
    assert attempts[0] == len(images)
    assert attempts[-1] < 0.7 * len(images)
    assert list(attempts) == sorted(attempts, reverse=True)


SCORES = st.lists(st.integers(-6, 6), min_size=1, max_size=12)


@settings(deadline=None, max_examples=300)
@given(SCORES, SCORES, SCORES, SCORES, SCORES, st.integers(0, 2**32 - 1))
def test_how_far_settled_images_go_changes_no_number(
    clean_in, clean_out, validation, low, high, seed
):
    """Whatever scores settled images end at, of either side."""
    draws = np.random.default_rng(seed)
    clean_inliers = torch.tensor(clean_in, dtype=torch.float32)
    clean_outliers = torch.tensor(clean_out, dtype=torch.float32)
    inliers = torch.minimum(clean_inliers, torch.tensor(draws.choice(low, len(clean_in))))
    outliers = torch.maximum(clean_outliers, torch.tensor(draws.choice(high, len(clean_out))))
    bars = stored({"id": clean_inliers, "far": clean_outliers, "validation": validation})
    lower, upper = bars.of(1), bars.of(-1)
    further_in = inliers - (inliers < lower) * torch.tensor(draws.integers(0, 9, len(inliers)))
    further_out = outliers + (outliers > upper) * torch.tensor(draws.integers(0, 9, len(outliers)))
    threshold = deployed_threshold(torch.tensor(validation, dtype=torch.float32))
    pairs = [
        ((inliers, clean_outliers), (further_in, clean_outliers)),
        ((clean_inliers, outliers), (clean_inliers, further_out)),
        ((inliers, outliers), (further_in, further_out)),
    ]
    for before, after in pairs:
        assert ranked(*before) == ranked(*after)
        assert deployed_rates(threshold, *before) == deployed_rates(threshold, *after)


def ranked(inliers, outliers):
    """Return the metrics that ties within a class do not change."""
    metrics = ood_metrics(inliers, outliers)
    return {name: value for name, value in metrics.items() if not name.startswith("aupr")}


def stored(scores):
    """Return the bars of clean scores by group."""
    store = Store()
    sets = []
    keys = {}
    for index, (group, values) in enumerate(scores.items()):
        array = np.asarray(values, dtype=np.float32)
        store.write(group, Cell({"scores": array}))
        direction = 1 if group == "id" else -1
        sets.append(
            SimpleNamespace(group=group, direction=direction, is_tested=group != "validation")
        )
        keys[index] = [group]
    return Bars(store, sets, keys)
