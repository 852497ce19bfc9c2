"""Array files: what is read, and what is refused with one line that names the field."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

from robust_ood.data import ImageSet, load_arrays, load_set
from robust_ood.errors import UserError


def pixels(count=6, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(
        0, 256, (count, size, size, channels), dtype=np.uint8
    )


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        load_arrays(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in (path.stem, *words)), message


def test_npz_keeps_pixels_labels_and_names(tmp_path):
    images, labels = pixels(), np.array([0, 1, 2, 2, 1, 0])
    found = load_arrays(
        save(tmp_path / "pets.npz", images=images, labels=labels, class_names=["cat", "dog", "emu"])
    )
    assert found.name == "pets"
    assert found.class_names == ("cat", "dog", "emu")
    assert found.image_shape == (8, 8)
    order = torch.tensor([4, 0, 0])
    assert found.read(order).dtype == torch.uint8
    np.testing.assert_array_equal(
        found.read(order).numpy(), images[[4, 0, 0]].transpose(0, 3, 1, 2)
    )
    assert found.read_labels(order).tolist() == [1, 0, 0]


def test_labels_of_minus_one_mean_none(tmp_path):
    found = load_arrays(save(tmp_path / "x.npz", images=pixels(), labels=np.full(6, -1)))
    assert found.labels is None
    assert found.read_labels(torch.arange(2)).tolist() == [-1, -1]


def test_npy_is_memory_mapped_and_read_only(tmp_path):
    np.save(tmp_path / "random_images.npy", pixels())
    found = load_arrays(tmp_path / "random_images.npy")
    assert isinstance(found.images, np.memmap)
    assert not found.images.flags.writeable
    np.testing.assert_array_equal(found.read(torch.arange(6)).permute(0, 2, 3, 1).numpy(), pixels())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (pixels()[0], ["(8, 8, 3)", "(N, height, width, 3)"]),
        (pixels()[None], ["(1, 6, 8, 8, 3)"]),
        (pixels(channels=2), ["(6, 8, 8, 2)"]),
        (pixels(channels=1).transpose(0, 3, 1, 2), ["(6, 1, 8, 8)", "channels last"]),
        (pixels(channels=4), ["(6, 8, 8, 4)"]),
        (pixels().transpose(0, 3, 1, 2), ["(6, 3, 8, 8)", "channels last"]),
        (pixels().astype(np.int64), ["int64", "uint8"]),
        (pixels().astype(np.uint16) * 257, ["uint16", "uint8"]),
        (pixels() > 127, ["bool", "uint8"]),
        (pixels().astype(np.float32) / 255, ["float32", "0..1", "255"]),
        (pixels().astype(np.float32) - 300, ["float32", "-300"]),
        (np.where(pixels() > 250, np.nan, 0.5), ["NaN"]),
        (np.where(pixels() > 250, np.inf, 0.5), ["NaN or infinite"]),
        (pixels()[:0], ["no images"]),
        (pixels()[:, :0], ["no images"]),
    ],
)
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_unusable_images(tmp_path, images, words, suffix):
    path = tmp_path / f"bad.{suffix}"
    np.savez(path, images=images) if suffix == "npz" else np.save(path, images)
    refused(path, *words)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(5, int), ["(5,)", "6 integers"]),
        (np.zeros((6, 1), int), ["(6, 1)", "6 integers"]),
        (np.zeros(6), ["float64", "6 integers"]),
        (np.array([0, 1, 2, -1, 0, 0]), ["-1", "0..K-1"]),
        (np.array(["cat"] * 6), ["6 integers"]),
    ],
)
def test_unusable_labels(tmp_path, labels, words):
    refused(save(tmp_path / "bad.npz", images=pixels(), labels=labels), *words)


def test_labels_beyond_the_networks_classes():
    found = ImageSet("pets", pixels(), np.arange(6))
    found.require_classes(6)
    with pytest.raises(
        UserError, match=r"pets: labels reach 5, but the network has classes 0\.\.4"
    ):
        found.require_classes(5)
    with pytest.raises(UserError, match="pets: has no labels"):
        ImageSet("pets", pixels()).require_classes(5)


def test_archives_that_are_not_ours(tmp_path):
    refused(save(tmp_path / "foreign.npz", x=pixels(), y=np.zeros(6)), "no array 'images'", "x, y")
    (tmp_path / "text.npz").write_text("these are not arrays")
    refused(tmp_path / "text.npz", "not a readable .npz")
    (tmp_path / "empty.npy").write_bytes(b"")
    refused(tmp_path / "empty.npy", "not a readable .npy")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("images.npy", b"no array")
    refused(tmp_path / "zip.npz", "not a readable .npz")
    np.save(tmp_path / "array.npy", pixels())
    (tmp_path / "array.npy").rename(tmp_path / "renamed.npz")
    refused(tmp_path / "renamed.npz", "not a readable .npz")
    (tmp_path / "absent.npz").unlink(missing_ok=True)
    refused(tmp_path / "absent.npz", "no such file")
    refused(tmp_path, "no such file")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_truncated_files(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    np.savez_compressed(path, images=pixels(64)) if suffix == "npz" else np.save(path, pixels(64))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path, f"not a readable .{suffix}")


def test_flipped_bytes_of_a_compressed_file(tmp_path):
    path = save(tmp_path / "flipped.npz", images=pixels(64))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    refused(path, "not a readable .npz")


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("kind", ["npz", "npy", "raw"])
def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"bomb.{'npz' if kind == 'npz' else 'npy'}"
    if kind == "raw":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        objects = np.array([Bomb()], dtype=object)
        np.savez(path, images=objects) if kind == "npz" else np.save(path, objects)
    refused(path, "not a readable")
    assert not (tmp_path / "exploded").exists()


def test_names_are_files_under_the_root(tmp_path):
    (tmp_path / "sub").mkdir()
    save(tmp_path / "sub" / "a.npz", images=pixels())
    for spec in ("sub/a.npz", "sub/a", str(tmp_path / "sub" / "a.npz")):
        assert len(load_set(spec, tmp_path)) == 6


def test_missing_folder_file_and_name(tmp_path):
    with pytest.raises(
        UserError, match=r"data\.root: no such folder: .*nowhere .*data\.outliers: tiny"
    ):
        load_set("tiny", tmp_path / "nowhere", "outliers")
    with pytest.raises(UserError, match=r"data\.test: no such file: .*tiny\.npz"):
        load_set("tiny.npz", tmp_path, "test")
    save(tmp_path / "tinyimages.npz", images=pixels())
    with pytest.raises(
        UserError, match=r"data\.test: unknown name 'tinyimage'; did you mean 'tinyimages'"
    ):
        load_set("tinyimage", tmp_path, "test")
    (tmp_path / "shapes").mkdir()
    save(tmp_path / "shapes" / "train.npz", images=pixels())
    for wrong in ("shapez/train", "shapes/trian.npz", "shapes/trian"):
        with pytest.raises(UserError, match=r"data\.test: no such file.*shape[sz]/tr"):
            load_set(wrong, tmp_path, "test")
    with pytest.raises(UserError, match=r"did you mean 'shapes/train'"):
        load_set("shapez/train", tmp_path, "test")


def test_subset_keeps_images_with_their_labels():
    found = ImageSet("pets", pixels(), np.arange(6)).subset(np.array([5, 2]), "few")
    np.testing.assert_array_equal(found.images, pixels()[[5, 2]])
    assert (found.name, found.labels.tolist()) == ("few", [5, 2])
