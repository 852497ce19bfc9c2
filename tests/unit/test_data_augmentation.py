"""The batched augmentation against one image at a time, cropped and mirrored by plain slicing."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from robust_ood.data import OODData
from robust_ood.data.augment import crop_and_flip
from robust_ood.data.loaders import Batch
from robust_ood.randomness import generator


def variants(image, padding):
    """Return every crop of a zero-padded image `(C, H, W)`, plain and mirrored, by its place."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    for down in range(2 * padding + 1):
        for right in range(2 * padding + 1):
            crop = padded[:, down : down + height, right : right + width]
            yield (down, right, False), crop
            yield (down, right, True), crop[:, :, ::-1]


@pytest.mark.parametrize(("height", "width", "padding"), [(8, 8, 2), (6, 9, 1), (5, 5, 0)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_image_becomes_one_of_its_own_crops(height, width, padding, dtype):
    images = torch.randint(1, 256, (12, 3, height, width), generator=generator(0, "pixels")).to(
        dtype
    )
    found = crop_and_flip(images, generator(1, "augment"), padding)
    assert (found.shape, found.dtype) == (images.shape, dtype)
    for image, result in zip(images.numpy(), found.numpy(), strict=True):
        assert any(np.array_equal(result, crop) for _, crop in variants(image, padding))


def test_all_places_and_both_sides_come_equally_often():
    image = np.arange(1, 76, dtype=np.uint8).reshape(3, 5, 5)
    places = {crop.tobytes(): place for place, crop in variants(image, 1)}
    assert len(places) == 18
    images = torch.from_numpy(image).expand(3600, -1, -1, -1)
    found = [
        places[result.tobytes()]
        for result in crop_and_flip(images, generator(2, "augment"), 1).numpy()
    ]
    counts = [found.count(place) for place in places.values()]
    assert chisquare(counts).pvalue > 1e-3


def test_same_generator_same_result_and_memory_format_does_not_matter():
    images = torch.randint(
        0, 256, (16, 3, 8, 8), generator=generator(0, "pixels"), dtype=torch.uint8
    )
    one = crop_and_flip(images, generator(1, "a"))
    assert torch.equal(one, crop_and_flip(images, generator(1, "a")))
    assert torch.equal(
        one, crop_and_flip(images.contiguous(memory_format=torch.channels_last), generator(1, "a"))
    )
    assert not torch.equal(one, crop_and_flip(images, generator(1, "b")))


def test_an_empty_batch_stays_empty():
    assert crop_and_flip(torch.empty((0, 3, 8, 8)), generator(0, "a")).shape == (0, 3, 8, 8)


class Trainer:
    """What the module asks of a trainer."""

    def __init__(self, training, rank=0):
        self.training, self.global_rank, self.world_size = training, rank, 1


def after_transfer(*, training, epoch=0, step=0, rank=0, **settings):
    pixels = torch.randint(
        0, 256, (8, 3, 8, 8), generator=generator(0, "pixels"), dtype=torch.uint8
    )
    data = OODData(**settings)
    data.trainer = Trainer(training, rank)
    return pixels / 255, data.on_after_batch_transfer(
        Batch(pixels, torch.zeros(8), pixels, torch.arange(8), epoch, step), 0
    )


def test_only_training_batches_are_augmented_and_only_if_asked():
    for settings in ({"training": False}, {"training": True, "augmentation": "none"}):
        pixels, batch = after_transfer(**settings)
        assert torch.equal(batch.images, pixels)
        assert torch.equal(batch.outliers, pixels)
    pixels, batch = after_transfer(training=True)
    assert not torch.equal(batch.images, pixels)
    assert not torch.equal(
        batch.images, batch.outliers
    )  # inliers and outliers have draws of their own


def test_draws_belong_to_seed_epoch_step_and_rank():
    def draw(**keys):
        return after_transfer(training=True, **keys)[1].images

    assert torch.equal(draw(epoch=1, step=2), draw(epoch=1, step=2))
    for other in (
        {"epoch": 2, "step": 2},
        {"epoch": 1, "step": 3},
        {"epoch": 1, "step": 2, "rank": 1},
        {"seed": 1},
    ):
        assert not torch.equal(draw(epoch=1, step=2), draw(**other))
