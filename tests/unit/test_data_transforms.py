"""Augmentation by name: torchvision's transforms, a user's own, mixing; keyed draws."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

from robust_ood.data.augment import crop_and_flip
from robust_ood.data.transforms import Augmentation, as_float
from robust_ood.errors import UserError
from robust_ood.randomness import generator
from robust_ood.training.goals import cross_entropy

KEYS = (3, 7, 0)  # epoch, step, rank
NAMED = [
    "RandomHorizontalFlip", "TrivialAugmentWide", "RandAugment",
    {"name": "RandomResizedCrop", "size": 8},
    {"name": "ColorJitter", "brightness": 0.4, "hue": 0.1},
    {"class_path": "torchvision.transforms.v2.RandomErasing", "init_args": {"p": 1.0}},
    {"name": "crop_and_flip", "padding": 2},
]  # fmt: skip


def pixels(count=6, size=8):
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, generator=generator(0, "pixels"), dtype=torch.uint8)


@pytest.mark.parametrize("spec", NAMED, ids=str)
def test_draws_depend_on_their_keys_alone(spec):
    images = pixels()
    augmentation = Augmentation([spec], 10)
    torch.manual_seed(1)
    first = augmentation.transformed(images, 0, "augment inliers", *KEYS)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = Augmentation([spec], 10).transformed(images, 0, "augment inliers", *KEYS)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws move
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    for seed, keys in ((1, KEYS), (0, (3, 8, 0)), (0, (3, 7, 1))):
        other = augmentation.transformed(pixels(64), seed, "augment inliers", *keys)
        usual = augmentation.transformed(pixels(64), 0, "augment inliers", *KEYS)
        assert not torch.equal(other, usual)


def test_each_image_has_draws_of_its_own():
    image = pixels(1)
    images = image.expand(64, -1, -1, -1)
    flipped = Augmentation(["RandomHorizontalFlip"], 10).transformed(images, 0, "augment", *KEYS)
    plain = sum(torch.equal(each, image[0]) for each in flipped)
    mirrored = sum(torch.equal(each, image[0].flip(2)) for each in flipped)
    assert plain + mirrored == 64
    assert 15 < plain < 49


def test_what_was_there_before_lists_draws_the_same_bits():
    images = pixels(32)
    expected = crop_and_flip(images, generator(5, "augment inliers", *KEYS))
    for given in ("crop_and_flip", ["crop_and_flip"]):
        found = Augmentation(given, 10).transformed(images, 5, "augment inliers", *KEYS)
        assert torch.equal(found, expected)
    assert not Augmentation("none", 10).changes
    assert not Augmentation([], 10).changes


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_gives_shares_of_classes(name):
    augmentation = Augmentation([{"name": name, "alpha": 0.7}], 4)
    images = as_float(pixels(8))
    labels = torch.arange(8) % 4
    mixed, shares = augmentation.mixed(images, labels, 0, *KEYS)
    again, _ = augmentation.mixed(images, labels, 0, *KEYS)
    assert torch.equal(mixed, again)
    assert not torch.equal(mixed, images)
    assert shares.shape == (8, 4)
    assert torch.allclose(shares.sum(1), torch.ones(8))
    logits = torch.randn(8, 4, generator=generator(0, "logits"))
    expected = F.cross_entropy(logits, shares, reduction="none")
    assert torch.allclose(cross_entropy(logits, shares), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_label_smoothing_is_torchs_and_leaves_images(dtype):
    augmentation = Augmentation([{"name": "label_smoothing", "share": 0.2}], 5)
    images = as_float(pixels(8)).to(dtype)
    labels = torch.arange(8) % 5
    same, shares = augmentation.mixed(images, labels, 0, *KEYS)
    assert torch.equal(same, images)
    logits = torch.randn(8, 5, generator=generator(0, "logits"), dtype=dtype)
    expected = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)
    assert torch.allclose(cross_entropy(logits, shares.float()), expected.float(), atol=1e-6)


def test_labels_of_mixed_images_are_smoothed():
    mixing = {"name": "mixup", "alpha": 0.7}
    images = as_float(pixels(8))
    labels = torch.arange(8) % 4
    mixed, shares = Augmentation([mixing], 4).mixed(images, labels, 0, *KEYS)
    again, smooth = Augmentation([mixing, "label_smoothing"], 4).mixed(images, labels, 0, *KEYS)
    assert torch.equal(mixed, again)
    assert torch.allclose(smooth, 0.9 * shares + 0.1 / 4)


OWN = """
class Darker:
    def __init__(self, factor: float = 0.5):
        self.factor = factor
    def __call__(self, image):
        return (image * self.factor).to(image.dtype)

class Noise:
    batched = True
    def __call__(self, images, generator):
        import torch
        noise = torch.rand(images.shape, generator=generator)
        return (images / 255 + noise).clamp(0, 1)

class Normalized:
    def __call__(self, image):
        return image / 255 - 0.5

class Ragged:
    def __call__(self, image):
        return image[:, : 4 + int(image[0, 0, 0]) % 4]
"""


def test_classes_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_transforms.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    images = pixels()
    try:
        darker = Augmentation([{"name": "own_transforms.Darker", "factor": 0.25}], 10)
        assert torch.equal(darker.transformed(images, 0, "x", *KEYS), images // 4)
        noise = Augmentation(["own_transforms.Noise"], 10).transformed(images, 0, "x", *KEYS)
        assert as_float(noise) is noise
        for name, message in (
            ("Normalized", r"Normalized gives values in -0\.5.*; expected uint8 or floats in"),
            ("Ragged", "Ragged gives images of several shapes"),
        ):
            refused = Augmentation([f"own_transforms.{name}"], 10)
            with pytest.raises(UserError, match=message):
                refused.transformed(images, 0, "x", *KEYS)
    finally:
        sys.modules.pop("own_transforms", None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("flip", "expected one of crop_and_flip, none, or a list"),
        (["RandomResizeCrop"], "did you mean 'RandomResizedCrop'"),
        (["RandomResizedCrop"], "RandomResizedCrop.size"),
        ([{"name": "RandAugment", "magnitud": 3}], "did you mean 'magnitude'"),
        ([{"name": "crop_and_flip", "padding": -1}], "padding: -1"),
        (["mixup", "cutmix"], "one of mixup, cutmix"),
        (["mixup", "RandAugment"], "come after transforms"),
        (["label_smoothing", "mixup"], "label_smoothing, which comes last"),
        ([{"name": "label_smoothing", "share": 1.0}], "label_smoothing.share: 1.0"),
        (["no_module.X"], "cannot import"),
        ([{"name": "RandomHorizontalFlip", "p": 2.0}], "data.augmentation.RandomHorizontalFlip"),
        ([{"size": 3}], "has no 'name'"),
        (3, "expected a list"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        Augmentation(given, 10)
    assert str(caught.value).startswith("data.augmentation")
    assert "\n" not in str(caught.value)
