"""Corrupted sets: the same image at every read, whoever reads it; mistakes are one line.

The library is large (OpenCV, numba), so a stand-in with its interface takes its place where it is
not installed.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from robust_ood.data import SetSpec
from robust_ood.data.named import load_set
from robust_ood.data.sources import corruptions
from robust_ood.errors import UserError


def corrupt(image, severity=1, corruption_name=None, **settings):
    """As the library's: it draws from NumPy's global generator, and gives three channels."""
    assert image.dtype == np.uint8
    assert corruption_name in corruptions.CORRUPTIONS
    source = np.random
    if corruption_name in ("impulse_noise", "glass_blur"):
        source = np.random.default_rng(settings.get("seed"))
    noise = source.normal(0, 10 * severity, (*image.shape[:2], 3))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    library = ModuleType("imagecorruptions")
    library.corrupt = corrupt
    monkeypatch.setitem(sys.modules, "imagecorruptions", library)
    images = np.full((150, 32, 32, 3), 100, np.uint8)
    np.savez(tmp_path / "grey.npz", images=images, labels=np.arange(150) % 4)
    return tmp_path


def load(folder, limit=2**30, **settings):
    spec = {"source": "grey.npz", "corruption": "gaussian_noise", **settings}
    return load_set(spec, folder, memory_limit=limit)


def test_an_image_is_the_same_however_it_is_read(arrays):
    whole = load(arrays)
    assert whole.name == "grey-gaussian_noise-3"
    assert whole.in_memory  # read by threads
    assert (whole.labels == np.arange(150) % 4).all()
    lazy = load(arrays, limit=0)
    state = np.random.get_state()[1].copy()
    assert (lazy.images[[70, 3]] == whole.images[[70, 3]]).all()
    assert (np.random.get_state()[1] == state).all()
    few = load(arrays, count=20)
    places = [
        place
        for place in range(150)
        if any((whole.images[place] == each).all() for each in few.images)
    ]
    assert len(places) == 20  # the same images of the same places
    assert not (whole.images[0] == whole.images[1]).all()
    assert not (load(arrays, seed=1).images[0] == whole.images[0]).all()
    deviations = [load(arrays, severity=severity).images.std() for severity in (1, 3, 5)]
    assert deviations == sorted(deviations)


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_every_corruption_is_keyed_by_its_image(name, arrays):
    first = load(arrays, count=4, corruption=name).images
    assert (load(arrays, count=4, corruption=name).images == first).all()


def test_mistakes_are_one_line(arrays, monkeypatch):
    for settings, message in (
        ({"corruption": "gausian_noise"}, "did you mean 'gaussian_noise'"),
        ({"severity": 6}, "severity: expected"),
        ({"severity": 0}, "severity: expected"),
        ({"size": 16}, "at least 32 x 32 pixels"),
    ):
        with pytest.raises(UserError, match=message):
            load(arrays, **settings)
    with pytest.raises(UserError, match="severity: given without a corruption"):
        SetSpec("grey.npz", severity=2)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError, match=r'pip install "robust-ood\[corruptions\]"'):
        load(arrays)


def test_the_names_are_the_librarys():
    library = pytest.importorskip("imagecorruptions")
    assert tuple(library.get_corruption_names("all")) == corruptions.CORRUPTIONS
