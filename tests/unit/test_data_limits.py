"""`limit`: the first images of a set, unless these would stand for few of its classes."""

from __future__ import annotations

import numpy as np
import pytest

from robust_ood.data import ImageSet, OODData
from robust_ood.data.limits import limited, must_draw
from robust_ood.detectors import MSP
from robust_ood.evaluation import evaluate
from robust_ood.models import WideResNet


def numbered(labels, count=None):
    count = len(labels) if labels is not None else count
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return ImageSet("set", images, labels)


def places(images):
    return images.images[np.arange(len(images))][:, 0, 0, 0].tolist()


SORTED = np.repeat(np.arange(10), 20)
SHUFFLED = np.random.default_rng(0).permutation(SORTED)


@pytest.mark.parametrize("labels", [SORTED, SORTED[::-1], np.roll(SORTED, 7), 9 - SORTED])
@pytest.mark.parametrize("limit", [10, 25, 100, 150])
def test_a_set_that_is_sorted_by_class_is_drawn_from_and_always_the_same(labels, limit):
    images = numbered(np.ascontiguousarray(labels))
    few = limited(images, limit)
    assert len(few) == limit
    assert must_draw(images, limit)
    assert places(few) == sorted(places(few)) == places(limited(images, limit))
    assert len(np.unique(few.labels)) > len(np.unique(labels[:limit]))
    assert few.labels.tolist() == labels[places(few)].tolist()


@pytest.mark.parametrize("limit", [1, 3, 10, 25, 199])
def test_a_shuffled_set_keeps_its_first_images_whatever_classes_they_lack(limit):
    images = numbered(SHUFFLED)
    assert places(limited(images, limit)) == list(range(limit))


@pytest.mark.parametrize("labels", [None, np.zeros(50, int), np.arange(50) % 5])
def test_other_sets_keep_their_first_images(labels):
    images = numbered(labels, 50)
    assert places(limited(images, 20)) == list(range(20))


@pytest.mark.parametrize("limit", [None, 200, 1000])
def test_without_a_limit_that_matters_the_set_stays_as_it_is(limit):
    images = numbered(SORTED)
    assert limited(images, limit) is images


def test_an_evaluation_says_so_and_scores_all_classes(tmp_path):
    draws = np.random.default_rng(0)
    for name, labels in (("sorted", SORTED[:80]), ("far", None)):
        arrays = {"images": draws.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)}
        if labels is not None:
            arrays["labels"] = labels
        np.savez(tmp_path / f"{name}.npz", **arrays)
    data = OODData(test="sorted.npz", far=["far.npz"], root=tmp_path, num_classes=4)
    net = WideResNet(10, 1, num_classes=4)
    found = evaluate(
        net,
        detectors={"msp": MSP(net)},
        attacks={},
        data=data,
        limit=8,
        sanity=False,
        intervals=0,
    )
    note = found.warnings[0]
    assert note == (
        "sorted: it is sorted by class, so the 8 images that are used are drawn from all of them "
        "instead of the first ones"
    )
