"""Labels bind by class name: a missing class folder must not renumber the others."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from robust_ood.data import OODData
from robust_ood.errors import UserError

SHADES = {"ant": 10, "bee": 120, "cat": 230}


def make_folder(root, classes, count=2):
    for name in classes:
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (4, 4), (SHADES.get(name, 50),) * 3).save(folder / f"{index}.png")
    return root


def labels_by_shade(images):
    """Return the label of each shade of grey in a set."""
    pixels = images.images[np.arange(len(images))]  # (N, H, W, 3)
    pairs = zip(pixels, images.labels, strict=True)
    return {int(image.mean()): int(label) for image, label in pairs}


def data_of(root, **sets):
    return OODData(root=root, size=4, num_classes=3, **sets)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_missing_class_folder_does_not_renumber_the_others(tmp_path, part):
    make_folder(tmp_path / "train", SHADES)
    make_folder(tmp_path / "part", ["ant", "cat"])
    data = data_of(tmp_path, train="train", **{part: "part"})
    assert labels_by_shade(data.inliers("train")) == {10: 0, 120: 1, 230: 2}
    assert labels_by_shade(data.inliers(part)) == {10: 0, 230: 2}
    assert data.inliers(part).class_names == ("ant", "bee", "cat")


def test_an_empty_class_folder_is_a_missing_one(tmp_path):
    make_folder(tmp_path / "train", SHADES)
    make_folder(tmp_path / "part", ["ant", "cat"])
    (tmp_path / "part" / "bee").mkdir()
    data = data_of(tmp_path, train="train", test="part")
    assert labels_by_shade(data.inliers("test")) == {10: 0, 230: 2}


def test_a_linked_class_folder_is_followed_and_a_circle_of_links_ends(tmp_path):
    make_folder(tmp_path / "train", SHADES)
    make_folder(tmp_path / "part", ["ant", "cat"])
    (tmp_path / "part" / "bee").symlink_to(tmp_path / "train" / "bee")
    (tmp_path / "part" / "cat" / "again").symlink_to(tmp_path / "part" / "cat")
    data = data_of(tmp_path, train="train", test="part")
    assert labels_by_shade(data.inliers("test")) == {10: 0, 120: 1, 230: 2}
    assert len(data.inliers("test")) == 6


def test_a_class_that_was_not_trained_is_named(tmp_path):
    make_folder(tmp_path / "train", ["ant", "bee"])
    make_folder(tmp_path / "part", ["ant", "dog"])
    data = data_of(tmp_path, train="train", test="part")
    with pytest.raises(UserError, match=r"data\.test: part: class 'dog' is not a class of data\."):
        data.inliers("test")


def test_arrays_with_names_in_another_order_are_matched_by_name(tmp_path):
    images = np.stack([np.full((4, 4, 3), shade, np.uint8) for shade in SHADES.values()])
    names = np.array(list(SHADES))
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(3), class_names=names)
    np.savez(
        tmp_path / "test.npz", images=images, labels=np.array([2, 1, 0]), class_names=names[::-1]
    )
    data = data_of(tmp_path, train="train.npz", test="test.npz")
    assert labels_by_shade(data.inliers("test")) == {10: 0, 120: 1, 230: 2}


def test_a_training_set_that_is_not_there_does_not_stop_an_evaluation(tmp_path):
    make_folder(tmp_path / "part", SHADES)
    data = data_of(tmp_path, train="gone", test="part")
    assert labels_by_shade(data.inliers("test")) == {10: 0, 120: 1, 230: 2}


def test_fewer_names_than_labels_are_named(tmp_path):
    make_folder(tmp_path / "train", SHADES)
    images = np.zeros((3, 4, 4, 3), np.uint8)
    np.savez(
        tmp_path / "test.npz", images=images, labels=np.arange(3), class_names=np.array(["ant"])
    )
    with pytest.raises(UserError, match=r"data\.test: test: labels reach 2, but class_names"):
        data_of(tmp_path, train="train", test="test.npz").inliers("test")


@pytest.mark.parametrize("linked", ["bee", "cat/inside"])
def test_a_class_that_is_a_link_to_another_class_is_said(tmp_path, linked):
    folder = make_folder(tmp_path / "train", ["ant", "cat"])
    (folder / linked).symlink_to(folder / "ant")
    with pytest.warns(
        UserWarning, match="train: the class folders ant/ and .* same images"
    ) as said:
        data_of(tmp_path, train="train").inliers("train")
    assert len(said) == 1


def test_two_classes_of_one_name_do_not_become_one(tmp_path):
    images = np.zeros((4, 4, 4, 3), np.uint8)
    labels = np.arange(4)
    names = ["crane", "crane", "ant", "bee"]
    np.savez(tmp_path / "train.npz", images=images, labels=labels, class_names=names)
    np.savez(tmp_path / "test.npz", images=images, labels=labels, class_names=names[::-1])
    data = OODData(root=tmp_path, num_classes=4, train="train.npz", test="test.npz")
    with pytest.raises(UserError, match="two classes of that have one name"):
        data.inliers("test")
