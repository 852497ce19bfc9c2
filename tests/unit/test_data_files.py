"""Image files: how they become one size and 8-bit RGB, where they are listed, and what happens to
unreadable ones.
"""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robust_ood.data import EvaluationLoader, ImageSet, Reading, SetSpec, TrainingLoader, load_set
from robust_ood.data.sources.files import ImageFiles
from robust_ood.data.sources.folders import load_folder
from robust_ood.data.sources.form import ImageForm
from robust_ood.data.sources.image_lists import load_list
from robust_ood.data.storage import ExcludingStorage, SubsetStorage
from robust_ood.errors import UserError


def picture(height=12, width=16, seed=0, channels=3):
    return (
        np.random.default_rng(seed)
        .integers(0, 256, (height, width, channels), dtype=np.uint8)
        .squeeze()
    )


def write(path, pixels=None, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if pixels is None else pixels).save(path, **settings)
    return path


def files(*paths, fit=None):
    return ImageFiles(list(paths), fit or ImageForm(8), "pets")


# Sizes
# ----------------------------------------------------------------------------------------------------------------


def test_an_image_of_the_wanted_size_keeps_its_pixels(tmp_path):
    write(tmp_path / "a.png", picture(8, 8))
    for policy in ("resize", "stretch", "center_crop", "random_crop"):
        np.testing.assert_array_equal(
            files(tmp_path / "a.png", fit=ImageForm(8, policy))[[0]][0], picture(8, 8)
        )


def test_center_crop_is_the_middle_at_the_original_resolution(tmp_path):
    write(tmp_path / "a.png", picture(12, 16))
    np.testing.assert_array_equal(
        files(tmp_path / "a.png", fit=ImageForm(8, "center_crop"))[[0]][0], picture()[2:10, 4:12]
    )


def test_random_crops_are_pieces_that_stay_where_they_are(tmp_path):
    paths = [write(tmp_path / f"{index}.png", picture(12, 16, index)) for index in range(20)]
    crops = files(*paths, fit=ImageForm(8, "random_crop"))[np.arange(20)]
    places = set()
    for index, crop in enumerate(crops):
        image = picture(12, 16, index)
        found = [
            (y, x)
            for y in range(5)
            for x in range(9)
            if np.array_equal(image[y : y + 8, x : x + 8], crop)
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 10
    np.testing.assert_array_equal(
        files(*paths, fit=ImageForm(8, "random_crop"))[[7, 3]], crops[[7, 3]]
    )
    other = files(*paths, fit=ImageForm(8, "random_crop", seed=1))[np.arange(20)]
    assert not np.array_equal(other, crops)


def test_resize_keeps_the_aspect_and_stretch_does_not(tmp_path):
    """On a linear ramp bilinear resampling is a ramp again, so every policy has a known slope."""
    ramp = np.repeat(np.linspace(0, 255, 64).round().astype(np.uint8)[None, :, None], 32, 0).repeat(
        3, 2
    )  # 32 x 64
    path = write(tmp_path / "ramp.png", ramp)
    slope = {
        policy: np.diff(
            files(path, fit=ImageForm(16, policy, shorter))[[0]][0, 8, 2:-2, 0].astype(float)
        ).mean()
        for policy, shorter in (("resize", None), ("stretch", None), ("center_crop", None))
    }
    per_pixel = 255 / 63
    assert slope["resize"] == pytest.approx(2 * per_pixel, rel=0.05)
    assert slope["stretch"] == pytest.approx(4 * per_pixel, rel=0.05)
    assert slope["center_crop"] == pytest.approx(per_pixel, rel=0.05)
    margin = np.diff(
        files(path, fit=ImageForm(16, "resize", 24))[[0]][0, 8, 2:-2, 0].astype(float)
    ).mean()
    assert margin == pytest.approx(32 / 24 * per_pixel, rel=0.05)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 24),
    st.sampled_from(["resize", "stretch", "random_crop"]),
)
def test_any_size_becomes_the_wanted_size(height, width, size, policy):
    image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    assert ImageForm(size, policy)(image, 5).size == (size, size)


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"size": 8, "shorter": 4}, {"size": 8, "policy": "stretch", "shorter": 9}],
)
def test_unusable_sizes(settings):
    with pytest.raises(UserError, match=r"size|shorter"):
        ImageForm(**settings)


# Kinds of images
# ------------------------------------------------------------------------------------------------------


def test_grey_transparent_palette_and_16_bit_images_become_rgb_and_it_is_said_once(tmp_path):
    colour, grey = picture(8, 8), picture(8, 8, channels=1)
    alpha = np.dstack([colour, np.full((8, 8), 7, np.uint8)])
    wide = grey.astype(np.uint16) * 256 + 131
    few = Image.fromarray(colour).quantize(4)
    paths = [
        write(tmp_path / "colour.png", colour),
        write(tmp_path / "grey.png", grey),
        write(tmp_path / "alpha.png", alpha),
        write(tmp_path / "wide.png", wide),
        tmp_path / "few.png",
    ]
    few.save(paths[-1])
    with pytest.warns(
        UserWarning,
        match="pets: converted to 8-bit RGB: 1 16-bit, 1 grey, 1 palette, 1 transparent",
    ) as said:
        found = files(*paths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = found[np.arange(5)]
        images = found[np.arange(5)]
    assert len(said) == 1
    np.testing.assert_array_equal(images[0], colour)
    np.testing.assert_array_equal(images[1], np.dstack([grey] * 3))
    np.testing.assert_array_equal(images[2], colour)
    np.testing.assert_array_equal(images[3], np.dstack([grey] * 3))  # the upper eight bits
    np.testing.assert_array_equal(images[4], np.asarray(few.convert("RGB")))


def test_a_folder_of_plain_images_says_nothing(tmp_path):
    path = write(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files(path)


# Folders and lists
# ----------------------------------------------------------------------------------------------------


def test_class_folders_in_alphabetical_order(tmp_path):
    for index, name in enumerate(["dog/2.png", "cat/b/1.JPG", "cat/a.png", "emu/x.png"]):
        write(tmp_path / "pets" / name, np.full((8, 8, 3), index, np.uint8))
    (tmp_path / "pets" / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / "empty").mkdir()
    (tmp_path / "pets" / ".hidden").mkdir()
    write(tmp_path / "pets" / ".hidden" / "h.png")
    found = load_folder(tmp_path / "pets", ImageForm(8))
    assert found.class_names == ("cat", "dog", "emu")
    assert found.read_labels(torch.arange(4)).tolist() == [0, 0, 1, 2]
    assert found.read(torch.arange(4))[:, 0, 0, 0].tolist() == [2, 1, 0, 3]


def test_a_folder_without_class_folders_has_no_labels(tmp_path):
    write(tmp_path / "b.png")
    write(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    found = load_folder(tmp_path, ImageForm(8))
    assert found.labels is None
    assert found.read(torch.tensor([0])).max() == 0


def test_folders_without_a_clear_meaning(tmp_path):
    with pytest.raises(UserError, match="holds no images; known suffixes"):
        load_folder(tmp_path, ImageForm(8), "pets")
    write(tmp_path / "cat" / "a.png")
    write(tmp_path / "b.png")
    with pytest.raises(
        UserError, match=r"both beside class folders \(b.png\) and inside them \(cat/\)"
    ):
        load_folder(tmp_path, ImageForm(8), "pets")
    with pytest.raises(UserError, match="no such folder"):
        load_folder(tmp_path / "x", ImageForm(8))


def openood(tmp_path, lines):
    for index in range(3):
        write(
            tmp_path / "images_classic" / "pets" / f"{index} a.png",
            np.full((8, 8, 3), index, np.uint8),
        )
    path = tmp_path / "benchmark_imglist" / "cifar10" / "test_pets.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


def test_openood_lists_find_their_images(tmp_path):
    path = openood(
        tmp_path, ["# a comment", "pets/2 a.png 1", "", "pets/0 a.png 0", "pets/2 a.png 1"]
    )
    found = load_list(path, None, ImageForm(8))
    assert found.name == "test_pets"
    assert found.labels.tolist() == [1, 0, 1]
    assert found.read(torch.arange(3))[:, 0, 0, 0].tolist() == [2, 0, 2]
    assert load_list(openood(tmp_path, ["pets/1 a.png -1"]), None, ImageForm(8)).labels is None


def test_lists_with_and_without_labels_and_with_a_stated_base(tmp_path):
    write(tmp_path / "b" / "x.png")
    (tmp_path / "list.txt").write_text("x.png\n")
    assert load_list(tmp_path / "list.txt", tmp_path / "b", ImageForm(8)).labels is None
    spec = SetSpec("list.txt", base="b", size=8)
    assert len(load_set(spec, tmp_path)) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["pets/0 a.png 0", "pets/1 a.png"], "1 of the 2 lines .* have a label"),
        (["# nothing"], "names no images"),
        (
            ["elsewhere/0.png 0"],
            "elsewhere/0.png, the first image of .* is not in any folder above",
        ),
        (["pets/0 a.png 0", "pets/1 a.png -1"], "expected labels in 0..K-1, got -1"),
    ],
)
def test_unusable_lists(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        load_list(openood(tmp_path, lines), None, ImageForm(8))


# Unreadable files
# -----------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """Twenty images, of which 3 (empty), 8 (text) and 13 (cut short) are none; pixel values tell
    their number.
    """
    for index in range(20):
        write(
            tmp_path / "pets" / ("a" if index < 10 else "b") / f"{index:02}.png",
            np.full((8, 8, 3), index, np.uint8),
        )
    (tmp_path / "pets/a/03.png").write_bytes(b"")
    (tmp_path / "pets/a/08.png").write_text("I am no image")
    noisy = write(tmp_path / "pets/b/13.png", picture(64, 64))
    noisy.write_bytes(noisy.read_bytes()[:3000])
    return tmp_path


GOOD = [index for index in range(20) if index not in (3, 8, 13)]


def spec(share):
    return SetSpec("pets", size=8, max_unreadable=share)


def test_unreadable_images_are_left_out_named_and_counted_in_memory(damaged):
    with pytest.warns(UserWarning, match="left out an unreadable image") as said:
        found = load_set(spec(0.15), damaged)
    assert found.in_memory
    assert found.read(torch.arange(17))[:, 0, 0, 0].tolist() == GOOD
    assert found.labels.tolist() == [int(index >= 10) for index in GOOD]
    messages = [str(warning.message) for warning in said]
    assert len(messages) == 3
    for name, reason in (("03.png", "empty file"), ("08.png", "cannot identify"), ("13.png", "")):
        assert any(name in message and reason in message for message in messages)


@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_more_than_the_share_stops(damaged, memory_limit):
    with (
        pytest.warns(UserWarning, match="left out an unreadable image"),
        pytest.raises(
            UserError,
            match=r"pets: \d of 20 images cannot be read, more than the share max_unreadable = 0.05",
        ),
    ):
        list(
            EvaluationLoader(load_set(spec(0.05), damaged, memory_limit=memory_limit), batch_size=4)
        )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings(
    "error:.*left out an unreadable image"
)  # once each, not again each epoch
def test_unreadable_images_are_missing_from_their_batches(damaged, workers):
    found = load_set(spec(0.15), damaged, memory_limit=0)
    assert not found.in_memory
    with pytest.warns(UserWarning, match="left out an unreadable image") as said:
        list(EvaluationLoader(found, batch_size=4, reading=Reading(workers)))
    batches = list(EvaluationLoader(found, batch_size=1, reading=Reading(workers)))
    assert [int(batch.images[0, 0, 0, 0]) for batch in batches] == GOOD
    assert [int(batch.indices) for batch in batches] == GOOD
    named = [warning for warning in said if "left out" in str(warning.message)]
    assert len(named) == 3  # other libraries warn, too
    loader = TrainingLoader(
        found, found, batch_size=10, outlier_batch_size=20, seed=0, reading=Reading(workers)
    )
    first, second = list(loader)
    assert len(first.outliers) == len(second.outliers) == 17
    assert sorted([*first.indices.tolist(), *second.indices.tolist()]) == GOOD
    for batch in (first, second):
        assert batch.images[:, 0, 0, 0].tolist() == batch.indices.tolist()
        assert batch.labels.tolist() == [int(index >= 10) for index in batch.indices.tolist()]


def test_reading_an_unreadable_image_alone_names_it(damaged):
    found = load_set(spec(1), damaged, memory_limit=0)
    with pytest.raises(UserError, match=r"pets: cannot read .*03\.png \(empty file\)"):
        found.read(torch.tensor([2, 3]))


# Views
# ----------------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 29)), st.data())
def test_excluding_equals_deleting(excluded, data):
    images = np.arange(30 * 12, dtype=np.int64).astype(np.uint8).reshape(30, 2, 2, 3)
    images[:, 0, 0, 0] = np.arange(30)
    expected = np.delete(images, sorted(excluded), 0)
    view = ExcludingStorage(images, np.array(sorted(excluded), np.int64))
    assert len(view) == len(expected)
    if len(expected):
        wanted = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1)))
        np.testing.assert_array_equal(view[wanted], expected[wanted])


def test_a_subset_of_files_stays_in_files(tmp_path):
    paths = [
        write(tmp_path / f"{index}.png", np.full((8, 8, 3), index, np.uint8)) for index in range(4)
    ]
    few = ImageSet("pets", files(*paths), np.arange(4)).subset(np.array([3, 1]))
    assert isinstance(few.images, SubsetStorage)
    assert few.read(torch.arange(2))[:, 0, 0, 0].tolist() == [3, 1]
    assert few.labels.tolist() == [3, 1]
