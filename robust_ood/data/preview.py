"""A contact sheet: what the images of a set look like as a network sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from robust_ood.data.sets import ImageSet
from robust_ood.randomness import generator

_GAP, _TITLE = 4, 18
_LEAST = 64  # side of a tile in pixels; smaller images are enlarged by whole factors


def contact_sheet(images: ImageSet, rows: int = 8, columns: int = 8, seed: int = 0) -> Image.Image:
    """Return a picture of up to `rows * columns` images drawn by `seed`, sorted by class where they
    have any.

    Under each stands its class, or its place in the set where it has none.
    """
    count = min(rows * columns, len(images))
    drawn = (
        torch.randperm(len(images), generator=generator(seed, "contact sheet"))[:count]
        .sort()
        .values
    )
    taken = images.take(drawn)
    order = taken.labels.argsort(stable=True)
    pixels = taken.images[order].permute(0, 2, 3, 1).numpy()  # (n, H, W, 3)
    factor = max(1, -(-_LEAST // max(images.image_shape)))
    height, width = images.image_shape[0] * factor + _TITLE, images.image_shape[1] * factor + _GAP
    lines = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, lines * height + _TITLE + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text(
        (_GAP, _GAP),
        f"{images.name}: {len(images)} images, {images.image_shape[0]} x {images.image_shape[1]}",
        "black",
    )
    for place, (image, index, label) in enumerate(
        zip(pixels, taken.indices[order], taken.labels[order], strict=True)
    ):
        top, left = _TITLE + _GAP + place // columns * height, _GAP + place % columns * width
        sheet.paste(Image.fromarray(np.repeat(np.repeat(image, factor, 0), factor, 1)), (left, top))
        pen.text(
            (left, top + height - _TITLE), _caption(images, int(label), int(index), width), "black"
        )
    return sheet


def save_contact_sheet(images: ImageSet, path: Path, rows: int = 8, columns: int = 8) -> Path:
    """Write the contact sheet of a set as a picture file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, rows, columns).save(path)
    return path


def _caption(images: ImageSet, label: int, index: int, width: int) -> str:
    text = (
        str(index) if label < 0 else images.class_names[label] if images.class_names else str(label)
    )
    return text[: max(1, width // 6)]
