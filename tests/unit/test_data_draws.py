"""Data sets with random transforms in `__getitem__`: read once with a warning, or each time."""

from __future__ import annotations

import random
import sys
import warnings

import numpy as np
import pytest
import torch

from robust_ood.data.loaders import TrainingLoader
from robust_ood.data.named import load_set
from robust_ood.data.reading import Reading

DRAWN = """
import random
import numpy as np
import torch

class Drawn:
    targets = [0] * 12
    def __init__(self, drawn: bool = True):
        self.drawn = drawn
    def __len__(self):
        return 12
    def __getitem__(self, index):
        image = np.full((4, 4, 3), index, np.uint8)
        if self.drawn:
            image[0] = int(torch.randint(0, 256, ()))
            image[1] = random.randrange(256)
            image[2] = np.random.randint(256)
        return image, 0
"""


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    (tmp_path / "tests_drawn.py").write_text(DRAWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield {"source": "tests_drawn.Drawn", "size": 4}
    sys.modules.pop("tests_drawn", None)


def batches(images, epoch, workers=0, seed=3, start=0):
    loader = TrainingLoader(
        images, None, batch_size=4, outlier_batch_size=0, seed=seed, reading=Reading(workers)
    )
    loader.set_epoch(epoch)
    loader.load_state_dict({"epoch": epoch, "position": start})
    return [batch.images for batch in loader]


def test_a_set_that_draws_is_kept_with_a_warning(drawn, tmp_path):
    with pytest.warns(UserWarning, match=r"Drawn: item 0 is another image each .* cache: false"):
        images = load_set(drawn, tmp_path)
    assert images.in_memory
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_set({**drawn, "arguments": {"drawn": False}}, tmp_path)
        assert not load_set({**drawn, "cache": False}, tmp_path).in_memory


def test_what_is_read_each_time_has_keyed_draws(drawn, tmp_path):
    images = load_set({**drawn, "cache": False}, tmp_path)
    first = batches(images, epoch=0)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    for again in (batches(images, 0), batches(images, 0, workers=2)):
        assert all(map(torch.equal, first, again))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert torch.equal(batches(images, 0, start=2)[0], first[2])  # a run that was killed there
    for row in range(3):  # of each generator
        for other in (batches(images, epoch=1), batches(images, 0, seed=4)):
            assert not torch.equal(first[0][:, :, row], other[0][:, :, row])
