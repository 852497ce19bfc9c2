"""The in-distribution is no OOD set, whatever it is called and however it is stored."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from robust_ood.data import OODData, SetSpec
from robust_ood.errors import UserError


@pytest.fixture
def root(tmp_path):
    draws = np.random.Generator(np.random.PCG64(0))
    for name in ("train", "test", "foreign"):
        images = draws.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(40) % 4)
        np.save(tmp_path / f"{name}_again.npy", images[::-1].copy())
    return tmp_path


def data_of(root, far, **settings):
    data = OODData(
        train="train.npz", test="test.npz", far=[far], root=root, num_classes=4, **settings
    )
    data.setup("test")
    return data


@pytest.mark.parametrize("far", ["test_again.npy"])
def test_the_test_set_under_another_name_is_refused(root, far):
    with pytest.raises(UserError, match=r"data\.far: test.* holds images of data\.test"):
        data_of(root, far).ood_sets()


def test_the_training_set_is_refused_where_it_is_read(root):
    data = data_of(root, "train_again.npy")
    data.inliers("train")
    with pytest.raises(UserError, match=r"data\.far: .* holds images of data\.train"):
        data.ood_sets()


def test_it_can_be_forced_and_other_sets_pass(root):
    assert data_of(root, "test_again.npy", allow_overlap=True).ood_sets()
    assert data_of(root, "foreign.npz").ood_sets()


@pytest.mark.parametrize("far", ["train.npz", "train", {"source": "train.npz", "name": "other"}])
def test_a_part_of_the_in_distribution_is_refused_by_its_source_before_anything_is_read(root, far):
    far = SetSpec(**far) if isinstance(far, dict) else far
    with pytest.raises(UserError, match=r"data\.far: train.* is also in data\.train"):
        OODData(train="train.npz", test="test.npz", far=[far], root=root, num_classes=4)


def test_a_part_that_is_loaded_later_does_not_stop_what_was_computed(root):
    data = data_of(root, "train_again.npy")
    assert data.ood_sets()
    data.inliers("train")
    assert data.ood_sets()


@pytest.mark.parametrize("part", ["train", "test", "outliers"])
@pytest.mark.parametrize("settings", [{}, {"count": 5}])
def test_a_copy_of_a_file_is_refused_before_anything_is_read(root, part, settings):
    shutil.copy(root / "train.npz", root / "copied.npz")
    sets = {"train": "foreign.npz", part: "train.npz"}
    with pytest.raises(UserError, match=rf"data\.far: copied is also in data\.{part}"):
        OODData(far=[{"source": "copied", **settings}], root=root, num_classes=4, **sets)
    OODData(far=["copied"], root=root, num_classes=4, allow_overlap=True, **sets)
