"""A contact sheet: what the images of a set look like as a network sees them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from robust_ood.data.fields import require_count
from robust_ood.data.sets import ImageSet, as_levels
from robust_ood.randomness import generator

_GAP = 4  # pixels between tiles
_TEXT_HEIGHT = 18
_CHARACTER_WIDTH = 6
_SMALLEST_TILE = 64  # side in pixels; smaller images are enlarged by whole factors


def contact_sheet(images: ImageSet, rows: int = 8, columns: int = 8, seed: int = 0) -> Image.Image:
    """Return a picture of up to `rows * columns` images drawn by `seed`, sorted by class if any.

    Below each image is its class, or its place in the set where it has none.
    """
    require_count("rows", rows, 1)
    require_count("columns", columns, 1)
    count = min(rows * columns, len(images))
    drawn = torch.randperm(len(images), generator=generator(seed, "contact sheet"))[:count]
    readable = images.take(drawn.sort().values)
    order = readable.labels.argsort(stable=True)
    channels_last = as_levels(readable.images)[order].permute(0, 2, 3, 1)
    pixels = channels_last.expand(-1, -1, -1, 3).numpy()  # (n, H, W, 3)
    indices = readable.indices[order].tolist()
    labels = readable.labels[order].tolist()

    height, width = images.image_shape
    factor = math.ceil(_SMALLEST_TILE / max(height, width))
    tile = (width * factor, height * factor)
    column_width = tile[0] + _GAP
    row_height = tile[1] + _TEXT_HEIGHT
    lines = math.ceil(len(pixels) / columns)
    sheet_size = (columns * column_width + _GAP, lines * row_height + _TEXT_HEIGHT + _GAP)
    sheet = Image.new("RGB", sheet_size, "white")
    pen = ImageDraw.Draw(sheet)
    title = f"{images.name}: {len(images)} images, {height} x {width}"
    pen.text((_GAP, _GAP), title, "black")
    for position, image in enumerate(pixels):
        line, column = divmod(position, columns)
        left = _GAP + column * column_width
        top = _TEXT_HEIGHT + _GAP + line * row_height
        enlarged = Image.fromarray(image).resize(tile, Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left, top))
        caption = _caption(images, labels[position], indices[position], column_width)
        pen.text((left, top + tile[1]), caption, "black")
    return sheet


def save_contact_sheet(images: ImageSet, path: Path | str, rows: int = 8, columns: int = 8) -> Path:
    """Write the contact sheet of a set as a picture file and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, rows, columns).save(path)
    return path


def _caption(images: ImageSet, label: int, index: int, width: int) -> str:
    if label < 0:
        text = str(index)
    elif images.class_names:
        text = images.class_names[label]
    else:
        text = str(label)
    return text[: max(1, width // _CHARACTER_WIDTH)]
