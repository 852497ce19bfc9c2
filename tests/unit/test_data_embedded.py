"""Embedded sets: the same images in every run, parts that do not overlap, noise that is what it
says.
"""

import hashlib

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.datasets import load_digits

from robust_ood.data import EMBEDDED, OODData, load_set
from robust_ood.data.sources.digits import photograph_patches
from robust_ood.data.sources.synthetic import noise


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    return {name: load_set(name, root) for name in EMBEDDED if name.startswith(("digits", "photo"))}


def rows(images):
    return [image.tobytes() for image in images.images]


def digest(images):
    labels = b"" if images.labels is None else images.labels.astype("<i8").tobytes()
    return hashlib.sha256(images.images.tobytes() + labels).hexdigest()[:16]


def enlarged(digits):
    """Return `(N, 8, 8)` digits enlarged to `(N, 32, 32)`: bilinear between pixel centres, rounded
    to whole levels.
    """
    places = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(8)))  # (32, 8)
    return np.rint(weights @ digits @ weights.T).astype(np.uint8)


def test_the_parts_are_all_of_the_digits_and_no_digit_twice(sets):
    parts = [sets[f"digits/{part}"] for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1078, 270, 449]
    raw = load_digits()
    expected = enlarged(raw.images * 255 / 16)[..., None].repeat(3, -1)
    found = [pair for part in parts for pair in zip(rows(part), part.labels, strict=True)]
    assert sorted(found) == sorted(
        zip((image.tobytes() for image in expected), raw.target, strict=True)
    )


def test_held_out_classes_are_in_no_training_part(sets):
    kept = [sets[f"digits-0-7/{part}"] for part in ("train", "validation", "test")]
    held_out = sets["digits-0-7/held-out"]
    assert all(part.labels.max() == 7 and part.labels.min() == 0 for part in kept)
    assert len(held_out) == int((load_digits().target >= 8).sum())
    assert not set(rows(held_out)) & {row for part in kept for row in rows(part)}
    assert {*rows(held_out)} <= {
        row for part in ("train", "validation", "test") for row in rows(sets[f"digits/{part}"])
    }


def test_contents_are_the_same_in_every_run_and_release(sets):
    """Digits are exact in floating point; photographs depend on resampling code, so they are
    compared within a run.
    """
    assert {name: digest(sets[name]) for name in sets if name.startswith("digits")} == DIGESTS
    again = photograph_patches("flower", 1000, "again")
    np.testing.assert_array_equal(again.images, sets["photographs/test"].images)


def test_photograph_patches_come_from_two_different_photographs(sets):
    outliers, test = sets["photographs/outliers"], sets["photographs/test"]
    assert (len(outliers), len(test)) == (4000, 1000)
    assert outliers.image_shape == test.image_shape == (32, 32)
    assert not set(rows(outliers)) & set(rows(test))
    assert len(set(rows(test))) > 990
    assert outliers.images.std((1, 2, 3)).mean() > 10  # pictures, not blank squares
    assert outliers.labels is None


def test_noise_has_the_distribution_it_is_named_after():
    uniform = noise("uniform", 50).images
    assert abs(uniform.mean() - 127.5) < 1
    assert abs(uniform.std() - 255 / 12**0.5) < 1
    gaussian = noise("gaussian", 50).images
    assert abs((gaussian == 0).mean() - norm.cdf(-0.5 + 1 / 510)) < 0.01
    assert abs((gaussian == 255).mean() - norm.cdf(-0.5 + 1 / 510)) < 0.01
    inside = (gaussian > 0) & (gaussian <= 127)
    assert abs(inside.mean() - (norm.cdf(0) - norm.cdf(-0.5))) < 0.01
    rademacher = noise("rademacher", 50).images
    assert set(np.unique(rademacher)) == {0, 255}
    assert abs((rademacher == 255).mean() - 0.5) < 0.01
    np.testing.assert_array_equal(noise("uniform", 5).images, noise("uniform", 5).images)
    assert not np.array_equal(noise("uniform", 5).images, noise("uniform", 5, seed=1).images)


def test_the_digits_experiment_loads_as_one_module():
    data = OODData(
        train="digits/train",
        validation="digits/validation",
        test="digits/test",
        outliers="photographs/outliers",
        far=["photographs/test", "noise/uniform"],
        near=["digits-0-7/held-out"],
        validation_ood=["noise/gaussian"],
    )
    data.setup("fit")
    data.setup("test")
    assert [(group, images.name) for group, images in data.ood_sets()] == [
        ("near", "digits-8-9"),
        ("far", "flower-patches"),
        ("far", "uniform-noise"),
    ]
    assert [images.name for images in data.validation_ood_sets()] == ["gaussian-noise"]
    assert len(data.train_dataloader()) == 1078 // 64
    assert sum(len(batch.images) for batch in data.val_dataloader()) == 270
    assert sum(len(batch.images) for batch in data.test_dataloader()) == 449


DIGESTS = {
    "digits/train": "639ab08f65d03934",
    "digits/validation": "7c8da9b33aa15551",
    "digits/test": "457e2a3a890c7f70",
    "digits-0-7/train": "153d00a17f434b3c",
    "digits-0-7/validation": "7dbeb874746727ff",
    "digits-0-7/test": "271d3d152d02ee65",
    "digits-0-7/held-out": "b80514b23cbc78aa",
    "digits-8-9/validation": "92e1627988fef887",
    "digits-8-9/test": "aa8bf7c475d473c9",
}
