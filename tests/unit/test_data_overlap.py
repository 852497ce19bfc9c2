"""Duplicates between sets: planted ones are found, others are not, whatever was done to them."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from robust_ood.cli import main
from robust_ood.data import ImageSet, SetSpec, load_set
from robust_ood.data.overlap import overlap, perceptual_hash
from robust_ood.data.sources.digits import photograph_patches
from robust_ood.errors import UserError


@pytest.fixture(scope="module")
def patches():
    """Two hundred patches with something in them: little but noise survives compression of a piece
    of sky.
    """
    images = photograph_patches("china", 600, "patches").images
    return images[np.argsort(images.std((1, 2, 3)))[-200:]]


def planted(patches, change):
    """A set of 40: the first five are changed copies of the images 100..104 of the other set, which
    has 100..199.
    """
    images = patches[:40].copy()
    for place in range(5):
        images[place] = np.asarray(change(Image.fromarray(patches[100 + place])))
    return ImageSet("first", images), ImageSet("second", patches[100:])


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def test_exact_duplicates_are_found_in_all_places(patches):
    first = ImageSet("first", patches[[3, 1, 4, 1, 5]])
    second = ImageSet("second", patches[[1, 9, 5, 3, 1]])
    found = overlap(first, second, distance=-1)
    assert sorted(map(tuple, found.exact.tolist())) == [
        (0, 3),
        (1, 0),
        (1, 4),
        (3, 0),
        (3, 4),
        (4, 2),
    ]
    assert found.first().tolist() == [0, 1, 3, 4]
    assert len(found.near) == 0


@pytest.mark.parametrize(
    "change",
    [
        jpeg,
        lambda image: ImageEnhance.Brightness(image).enhance(0.9),
        lambda image: image.resize((24, 24), Image.Resampling.BICUBIC).resize(
            (32, 32), Image.Resampling.BICUBIC
        ),
    ],
)
def test_near_duplicates_survive_what_copies_go_through(patches, change):
    first, second = planted(patches, change)
    found = overlap(first, second, distance=6)
    assert len(found.exact) == 0
    pairs = set(map(tuple, found.near.tolist()))
    assert {(place, place) for place in range(5)} <= pairs
    assert (found.distances <= 6).all()
    assert len(pairs) < 20  # of 4,000; patches of one photograph overlap now and then


def test_different_pictures_are_far_apart():
    noise = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    found = overlap(ImageSet("a", noise[:50]), ImageSet("b", noise[50:]), distance=10)
    assert len(found.near) == len(found.exact) == 0


def test_distances_are_hamming_distances_of_an_independent_hash(patches):
    images = torch.from_numpy(patches[:30]).permute(0, 3, 1, 2)
    grey = (patches[:30].astype(float) * [0.299, 0.587, 0.114]).sum(-1)
    frequencies = np.stack([dctn(one)[:8, :8].ravel()[1:] for one in grey])
    # scipy scales the first row and column as the rest; signs against the median need the same
    # scaling
    signs, structured = perceptual_hash(images)
    expected = frequencies > np.median(frequencies, 1, keepdims=True)
    assert ((signs.numpy() > 0) == expected)[structured.numpy()].mean() > 0.999
    found = overlap(ImageSet("a", patches[:30]), ImageSet("b", patches[30:60]), distance=20)
    other, theirs_structured = perceptual_hash(torch.from_numpy(patches[30:60]).permute(0, 3, 1, 2))
    assert structured.all()
    assert theirs_structured.all()
    for (i, j), distance in zip(found.near.tolist(), found.distances.tolist(), strict=True):
        assert distance == int((signs[i] != other[j]).sum())
    expected_pairs = {
        (i, j)
        for i in range(30)
        for j in range(30)
        if (signs[i] != other[j]).sum() <= 20 and not np.array_equal(patches[i], patches[30 + j])
    }
    assert expected_pairs
    assert set(map(tuple, found.near.tolist())) == expected_pairs


def test_flat_images_are_not_all_alike():
    flat = np.zeros((10, 32, 32, 3), np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None, None]
    found = overlap(ImageSet("a", flat[:5]), ImageSet("b", flat[5:]))
    assert len(found.near) == len(found.exact) == 0


def test_a_set_against_itself_gives_each_pair_once(patches):
    images = ImageSet("a", patches[[0, 7, 0]])
    found = overlap(images, images, distance=-1)
    assert found.exact.tolist() == [[0, 2]]


def test_sizes_must_agree(patches):
    with pytest.raises(UserError, match=r"\(32, 32\) in a and \(16, 16\) in b"):
        overlap(ImageSet("a", patches[:2]), ImageSet("b", patches[:2, ::2, ::2]))


def test_the_command_writes_what_a_config_can_exclude(patches, tmp_path, capsys):
    np.save(tmp_path / "pool.npy", patches[[10, 11, 12, 13]])
    np.save(tmp_path / "test.npy", patches[[12, 50, 10]])
    arguments = ["overlap", "pool", "test", "--distance", "-1", "--root", tmp_path]
    outputs = ["--output", tmp_path / "new" / "pairs.csv", "--exclude", tmp_path / "leave.txt"]
    assert main(["data", *map(str, [*arguments, *outputs])]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 exact and 0 near pairs" in said
    assert "2 of the 4 images of pool are in test" in said
    assert "in a config: {source: pool, exclude: leave.txt}" in said
    with (tmp_path / "new" / "pairs.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["first", "second", "distance"],
            ["0", "2", "exact"],
            ["2", "0", "exact"],
        ]
    left = load_set(SetSpec("pool", exclude="leave.txt"), tmp_path)
    np.testing.assert_array_equal(
        left.read(torch.arange(2)).permute(0, 2, 3, 1).numpy(), patches[[11, 13]]
    )
    assert (
        main(
            [
                "data",
                "overlap",
                "pool",
                "test",
                "--root",
                str(tmp_path),
                "--output",
                str(tmp_path / "pool.npy/x"),
            ]
        )
        == 2
    )
    assert "output: cannot write" in capsys.readouterr().err


def test_files_that_cannot_be_read_do_not_move_the_places_of_the_rest(
    patches, tmp_path, capsys, monkeypatch
):
    """Files of any size against an array, neither with a size stated; the indices count all
    files.
    """
    (tmp_path / "data/pets").mkdir(parents=True)
    for index in range(6):
        Image.fromarray(patches[index]).resize((80, 70)).save(tmp_path / f"data/pets/{index}.png")
    (tmp_path / "data/pets/2.png").write_bytes(b"")
    np.save(
        tmp_path / "data/test.npy",
        np.asarray(Image.open(tmp_path / "data/pets/4.png").resize((64, 56)))[None],
    )
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"2\.png \(empty file\)"):
        code = main(
            ["data", "overlap", "pets", "test", "--exclude", "leave.txt", "--distance", "8"]
        )
    said = " ".join(capsys.readouterr().out.split())
    assert (code, "in a config: {source: pets, exclude: ../leave.txt}" in said) == (0, True)
    assert (tmp_path / "leave.txt").read_text() == "4\n"
    left = load_set(
        SetSpec("pets", exclude="../leave.txt", size=8), tmp_path / "data", memory_limit=0
    )
    assert [left.images.indices.tolist(), len(left)] == [[0, 1, 2, 3, 5], 5]
