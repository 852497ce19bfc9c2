"""Fitting holds as much memory for twice as many images: in tensors, and in the C library's heap."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from robust_ood import detectors
from robust_ood.data.sets import ReadImages
from robust_ood.detectors.fitting import heap
from robust_ood.detectors.fitting.passes import Pass
from robust_ood.detectors.fitting.statistics import Average
from robust_ood.evaluation.scoring import Batches
from tests.unit.test_detectors_fitting import OF_OTHER_NETWORKS

SMALL = {
    "knn": {"neighbours": 5, "bank_size": 16},
    "combood": {"neighbours": 5, "bank_size": 16, "layers": "norm"},
    "gram": {"layers": "norm"},
    "rankfeat": {"layers": "norm"},
    "weiper": {"repeats": 5},
    "corp": {"random_features": 64},
    "mahalanobis-layers": {"layers": ["conv", "norm"]},
    "safe-spot": {"method": "fgsm", "attack_steps": 2},
}
NAMES = [name for name in detectors.REGISTRY if name not in OF_OTHER_NETWORKS]
MIB = 2**20


@pytest.fixture(scope="module")
def new_objects_only():
    """Have the garbage collector look at nothing made before: each look would take a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held_bytes() -> int:
    """Return the bytes of all new tensors that anything holds."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Watched:
    """Batches of images and labels; before the last one, what new tensors take is noted."""

    def __init__(self, net: nn.Module, batches: int) -> None:
        self.net = net
        self.batches = batches
        self.held: list[int] = []

    def __iter__(self):
        places = torch.arange(12)
        for number in range(self.batches):
            if number == self.batches - 1:
                self.held.append(held_bytes())
            draws = torch.Generator().manual_seed(number % 5)  # what is kept may not depend on it
            images = torch.rand(12, 3, 8, 8, generator=draws)
            # Every class, and not the right one for each image.
            yield images, torch.where(places % 3 == 0, places % 4, self.net(images).argmax(1))


@pytest.mark.usefixtures("new_objects_only")
@pytest.mark.parametrize("name", NAMES)
def test_fitting_holds_no_more_tensors_for_twice_as_many_images(name, make_net):
    net = make_net(dtype=torch.float32)
    held = []
    for batches in (10, 20):
        detector = detectors.build(name, net, **SMALL.get(name, {}))
        images = Watched(net, batches)
        detectors.fit([detector], images)
        held.append(images.held)
    for few, many in zip(*held, strict=True):  # by pass
        assert many <= few + 1024


# --- the heap


class Fragmenting(nn.Module):
    """Gives features, and leaves gaps in the heap that are too narrow for what its next call makes.

    Each call makes 24 MiB or more in pieces, a little larger than those of the call before, and
    keeps a small tensor between any two.
    """

    def __init__(self, floats: int) -> None:
        super().__init__()
        self.floats = floats  # of a piece, at first
        self.calls = 0
        self.kept: list[torch.Tensor] = []

    def forward(self, images):
        size = self.floats + self.calls * self.floats // 16
        self.calls += 1
        pieces = []
        for _ in range(6 * MIB // self.floats):
            pieces.append(torch.ones(size))
            self.kept.append(torch.ones(16))
        return images.flatten(1)[:, :4]


class OnePass(nn.Module):
    """Something that is fitted by one pass over the images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def learn(self):
        yield [Pass(Average(), lambda seen: (self.net(seen.images),), self, forward=False)]


def resident() -> int:
    """Return the process's own memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def fit(net: nn.Module, batches: int) -> None:
    detectors.fit([OnePass(net)], [torch.rand(2, 3, 4, 4)] * batches)


def evaluate(net: nn.Module, batches: int) -> None:
    images = torch.rand(2 * batches, 3, 4, 4)
    places = torch.arange(len(images))
    Batches(2).map("clean", ReadImages(images, places, places), lambda batch: net(batch.images))


needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or heap._heap() is None, reason="the heap of glibc"
)


@needs_glibc
@pytest.mark.parametrize(("work", "floats"), [(fit, MIB // 4), (evaluate, MIB)])
def test_memory_is_flat_though_the_heap_is_full_of_gaps(work, floats):
    torch.ones(7 * MIB)  # freed: from now on glibc takes pieces up to that size from its heap
    net = Fragmenting(floats)  # of other sizes, which fit into no gap of the other test
    work(net, 4)
    before = resident()
    work(net, 16)
    assert resident() - before < heap.FREE + 64 * MIB


@needs_glibc
def test_little_free_memory_is_kept(monkeypatch):
    known = heap._heap()
    sizes = []
    watched = known._replace(trim=lambda pad: sizes.append(pad) or 0)
    monkeypatch.setattr(heap, "_heap", lambda: watched)
    monkeypatch.setattr(heap, "FREE", 1 << 60)
    heap.give_back()
    assert sizes == []
    monkeypatch.setattr(heap, "FREE", 0)
    heap.give_back()
    assert sizes == [0]


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    heap._heap.cache_clear()
    try:
        assert heap._heap() is None
        heap.give_back()
    finally:
        heap._heap.cache_clear()
