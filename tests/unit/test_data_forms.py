"""The form of images: depth, orientation and number of channels, from every source."""

from __future__ import annotations

import struct
import sys
import types
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from robust_ood.data import EMBEDDED, ImageSet, OODData, SetSpec, load_set
from robust_ood.data.overlap import overlap
from robust_ood.data.preview import contact_sheet
from robust_ood.data.sources.files import ImageFiles
from robust_ood.data.sources.form import ImageForm
from robust_ood.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def saved(folder, images, suffix="png", **settings):
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.{suffix}", **settings)
    return folder


def pixels(images):
    return images.read(torch.arange(len(images))).permute(0, 2, 3, 1).numpy()


# Depth
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_of_fewer_bits_are_scaled_by_the_stated_range(tmp_path, bits):
    values = GREY.astype(np.uint16) << (bits - 8)
    saved(tmp_path / "scans", values)
    with pytest.warns(UserWarning, match=rf"6 16-bit .* reach \d+ of {2**bits - 1}"):
        found = load_set({"source": "scans", "bits": bits, "size": 8, "channels": 1}, tmp_path)
    np.testing.assert_array_equal(pixels(found)[..., 0], GREY)


@pytest.mark.parametrize("bits", [8, 12])
def test_what_is_dark_for_want_of_its_range_is_said_once_with_the_setting(tmp_path, bits):
    values = GREY.astype(np.uint16) << (bits - 8)
    saved(tmp_path / "scans", values)
    with pytest.warns(UserWarning, match="16-bit values") as said:
        found = load_set({"source": "scans", "size": 8, "channels": 1}, tmp_path)
    (message,) = [str(warning.message) for warning in said]
    assert f"reach {values.max()} of 65535" in message
    assert f"`bits: {bits}`" in message
    assert pixels(found).max() <= 255 >> (16 - bits)  # as before: the upper 8 of 16 bits


def test_values_beyond_the_stated_range_are_not_cut_off(tmp_path):
    saved(tmp_path / "scans", [np.full((8, 8), 5000, np.uint16)])
    spec = SetSpec("scans", bits=12, size=8, max_unreadable=0.5)
    with (
        pytest.warns(UserWarning, match="more than 12 bits a channel: values reach 5000"),
        pytest.raises(UserError, match="cannot be read"),
    ):
        load_set(spec, tmp_path)


def deep_png(path, values):
    """Write a PNG of 16-bit RGB, which Pillow reads and cannot write."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_colour_of_16_bits_is_said_and_its_scale_is_not_pretended(tmp_path):
    deep_png(tmp_path / "deep" / "a.png", COLOUR[0].astype(np.uint16) * 257)
    with pytest.warns(UserWarning, match="1 16-bit colour of 1 inspected"):
        found = load_set({"source": "deep", "size": 8}, tmp_path)
    np.testing.assert_array_equal(pixels(found)[0], COLOUR[0])
    with (
        pytest.warns(UserWarning, match="`bits: 12` does not apply"),
        pytest.raises(UserError, match="cannot be read"),
    ):
        load_set({"source": "deep", "size": 8, "bits": 12}, tmp_path)


# Orientation
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_cameras_notes_of_how_they_were_held_are_followed(tmp_path, orientation, suffix):
    upright = np.random.default_rng(2).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    undo = {
        1: lambda image: image,
        2: lambda image: image[:, ::-1],
        3: lambda image: image[::-1, ::-1],
        4: lambda image: image[::-1],
        5: lambda image: image.transpose(1, 0, 2),
        6: lambda image: np.rot90(image, 1),
        7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
        8: lambda image: np.rot90(image, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"lossless": True} if suffix == "webp" else {}
    stored = np.ascontiguousarray(undo(upright))
    saved(tmp_path / "held", [stored], suffix, exif=exif, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_set({"source": "held", "size": 4, "policy": "center_crop"}, tmp_path)
    np.testing.assert_array_equal(pixels(found)[0], upright[:, 1:5])


def test_broken_notes_are_no_damage(tmp_path):
    saved(tmp_path / "odd", [COLOUR[0]], exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert len(load_set({"source": "odd", "size": 8}, tmp_path)) == 1


# Channels
# ----------------------------------------------------------------------------------------------------


def from_array(folder):
    np.savez(folder / "set.npz", images=GREY, labels=np.arange(6))
    return "set.npz"


def from_array_of_one_channel(folder):
    np.save(folder / "set.npy", GREY[..., None])
    return "set.npy"


def from_array_of_three_channels(folder):
    np.save(folder / "set.npy", GREY[..., None].repeat(3, -1))
    return "set.npy"


def from_folder(folder):
    saved(folder / "set" / "cat", GREY)
    return {"source": "set", "size": 8}


def from_list(folder):
    saved(folder / "set", GREY)
    (folder / "set.txt").write_text("\n".join(f"set/{index}.png {index}" for index in range(6)))
    return {"source": "set.txt", "size": 8}


def from_class(folder):
    module = types.ModuleType("grey_sets")
    module.Grey = Items
    sys.modules["grey_sets"] = module
    return {"source": "grey_sets.Grey", "size": 8}


class Items(torch.utils.data.Dataset):
    kind = "H W 1"

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = GREY[index]
        return {
            "H W": image,
            "H W 1": image[..., None],
            "1 H W": image[None],
            "H W of floats": image / 255,
            "tensor H W": torch.from_numpy(image),
            "tensor 1 H W": torch.from_numpy(image)[None],
            "tensor H W 1": torch.from_numpy(image)[..., None],
            "tensor with gradient": (torch.from_numpy(image)[None] / 255).requires_grad_(),
            "pillow": Image.fromarray(image),
        }[self.kind]


SOURCES = [
    from_array,
    from_array_of_one_channel,
    from_array_of_three_channels,
    from_folder,
    from_list,
    from_class,
]


@pytest.mark.parametrize("memory_limit", [0, 10**9])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_one_channel_and_three(tmp_path, source, memory_limit):
    spec = source(tmp_path)
    found = load_set(spec, tmp_path, memory_limit=memory_limit, channels=1)
    assert found.input_shape == (1, 8, 8)
    np.testing.assert_array_equal(pixels(found)[..., 0], GREY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coloured = load_set(spec, tmp_path, memory_limit=memory_limit)
    assert coloured.input_shape == (3, 8, 8)
    np.testing.assert_array_equal(pixels(coloured), GREY[..., None].repeat(3, -1))


@pytest.mark.parametrize(
    "kind",
    [
        "H W",
        "H W 1",
        "1 H W",
        "H W of floats",
        "tensor H W",
        "tensor 1 H W",
        "tensor H W 1",
        "tensor with gradient",
        "pillow",
    ],
)
def test_items_of_every_grey_shape(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Items, "kind", kind)
    found = load_set(from_class(tmp_path), tmp_path, channels=1)
    np.testing.assert_array_equal(pixels(found)[..., 0], GREY)


def test_grey_arrays_for_a_network_of_colours_are_said(tmp_path):
    with pytest.warns(UserWarning, match=r"set: its grey images .* `channels: 1` keeps one"):
        load_set(from_array(tmp_path), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_set(from_array(tmp_path), tmp_path, channels=1)
        load_set(from_folder(tmp_path), tmp_path, channels=1)


def test_colours_become_grey_as_in_pillow(tmp_path):
    np.save(tmp_path / "set.npy", COLOUR)
    found = load_set("set.npy", tmp_path, channels=1)
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in COLOUR]
    np.testing.assert_array_equal(pixels(found)[..., 0], expected)


@pytest.mark.parametrize("size", [None, 4, 12])
@pytest.mark.parametrize("name", ["digits/test", "photographs/test", "noise/uniform"])
def test_embedded_sets_become_grey_at_any_size(tmp_path, name, size):
    found = load_set({"source": name, "count": 20}, tmp_path, size=size, channels=1)
    assert found.input_shape == (1, size or 32, size or 32)
    assert found.in_memory
    assert pixels(found).std() > 1
    assert name in EMBEDDED


def test_a_set_states_its_own_channels_and_all_must_agree(tmp_path):
    np.savez(tmp_path / "train.npz", images=GREY, labels=np.arange(6) % 2)
    data = OODData(
        train="train.npz",
        far=[{"source": "noise/uniform", "size": 8, "channels": 3, "count": 5}],
        root=tmp_path,
        channels=1,
        num_classes=2,
    )
    data.inliers("train")
    with pytest.raises(UserError, match=r"data\.far: .* 3 channel\(s\), those of train 1"):
        data.ood_sets()


@pytest.mark.parametrize("channels", [0, 2, 4, True, "1"])
def test_other_numbers_of_channels(channels):
    with pytest.raises(UserError, match=r"data\.channels: expected 1 .* or 3"):
        OODData(channels=channels)


def test_batches_augmentation_and_validation_of_one_channel(tmp_path):
    np.savez(tmp_path / "train.npz", images=GREY, labels=np.arange(6) % 2)
    data = OODData(
        train="train.npz",
        validation="train.npz",
        outliers={"source": "noise/blobs", "count": 6},
        root=tmp_path,
        channels=1,
        size=8,
        num_classes=2,
        batch_size=3,
        outlier_batch_size=2,
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    moved = data.on_after_batch_transfer(batch, 0)
    assert moved.images.shape == (3, 1, 8, 8)
    assert moved.outliers.shape == (2, 1, 8, 8)
    assert moved.images.dtype == torch.float32
    augmented = data._augmenting()(batch)
    assert augmented.images.shape == (3, 1, 8, 8)


def test_pictures_and_overlap_of_one_channel():
    images = ImageSet("grey", GREY.repeat(4, 1).repeat(4, 2)[..., None])
    sheet = np.asarray(contact_sheet(images))
    assert sheet.shape[2] == 3
    assert len(overlap(images, ImageSet("again", images.images.copy())).exact) == 6


def test_files_need_a_size():
    with pytest.raises(UserError, match="size: not given"):
        ImageFiles([], ImageForm(), "none")
