"""Each entry of the catalogue on a tiny copy in its original layout, and what happens to a damaged
one.
"""

import gzip
import hashlib
import pickle
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from robust_ood.cli import main
from robust_ood.data import CATALOGUE, GROUPS, OODData, SetSpec, load_set
from robust_ood.data.catalogue.balanced import WarpedStorage, warp
from robust_ood.data.catalogue.layouts import first_of_each_class
from robust_ood.errors import UserError

SIZE = 32
pytestmark = pytest.mark.filterwarnings("ignore:.*expected .* images, found")


def pixels(count, seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def picture(path, seed=0, size=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(1, seed, size)[0]).save(path)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pickled(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return md5(path)


# Tiny copies: each writes files as the original has them and returns the labels of the default
# part, or None ----------


def cifar10(home, patch):
    folder = home / "cifar-10-batches-py"
    names = [f"data_batch_{number}" for number in range(1, 6)]
    sums = [
        pickled(
            folder / name,
            {"data": pixels(4, seed).transpose(0, 3, 1, 2).reshape(4, -1), "labels": [0, 9, 3, 1]},
        )
        for seed, name in enumerate([*names, "test_batch"])
    ]
    meta = pickled(folder / "batches.meta", {"label_names": list("abcdefghij")})
    patch.setattr(
        datasets.CIFAR10, "train_list", [list(pair) for pair in zip(names, sums, strict=False)]
    )
    patch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums[5]]])
    patch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta}
    )
    return [0, 9, 3, 1], pixels(4, 5)


def cifar100(home, patch):
    folder = home / "cifar-100-python"
    content = {"data": pixels(3, 7).transpose(0, 3, 1, 2).reshape(3, -1), "fine_labels": [99, 0, 5]}
    sums = {name: pickled(folder / name, content) for name in ("train", "test")}
    meta = pickled(folder / "meta", {"fine_label_names": [str(label) for label in range(100)]})
    patch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    patch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    patch.setattr(
        datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": meta}
    )
    return [99, 0, 5], pixels(3, 7)


def gtsrb(home, patch):
    for label, count in ((0, 3), (1, 1), (2, 5)):
        for number in range(count):
            picture(home / f"gtsrb/GTSRB/Training/{label:05}/{number:05}.ppm", 10 * label + number)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number, label in enumerate([2, 0]):
        picture(home / f"gtsrb/GTSRB/Final_Test/Images/{number:05}.ppm", number, SIZE)
        rows.append(f"{number:05}.ppm;32;32;1;1;31;31;{label}")
    (home / "gtsrb/GT-final_test.csv").write_text("\n".join(rows))
    return [2, 0], np.concatenate([pixels(1, 0), pixels(1, 1)])


def svhn(home, patch):
    labels = np.array(
        [10] * 3 + [1, 9, 10, 1], np.uint8
    )  # MATLAB counts from 1, so 10 stands for the digit 0
    home.mkdir(parents=True, exist_ok=True)
    savemat(home / "test_32x32.mat", {"X": pixels(7).transpose(1, 2, 3, 0), "y": labels[:, None]})
    links = {"test": ["", "test_32x32.mat", md5(home / "test_32x32.mat")]}
    (home / "train_32x32.mat").write_bytes((home / "test_32x32.mat").read_bytes())
    links["train"] = ["", "train_32x32.mat", links["test"][2]]
    patch.setattr(datasets.SVHN, "split_list", links)
    return [0, 0, 0, 1, 9, 0, 1], pixels(7)


def textures(home, patch):
    for label in ("banded", "woven"):
        picture(home / f"dtd/images/{label}/{label}_0001.jpg")
    return [0, 1], None


def places365(home, patch):
    for number in (1, 2):
        picture(home / f"val_256/Places365_val_0000000{number}.jpg")
    return None, None


def odin(folder, file):
    def write(home, patch):
        for number in (0, 1, 2):
            picture(home / folder / file.format(number), number, SIZE)
        return None, np.concatenate([pixels(1, number) for number in range(3)])

    return write


def idx(folder):
    def write(home, patch):
        raw = home / folder / "raw"
        raw.mkdir(parents=True)
        grey = pixels(2, 3, 28)[..., 0]
        for part in ("train", "t10k"):
            (raw / f"{part}-images-idx3-ubyte").write_bytes(
                struct.pack(">IIII", 0x803, 2, 28, 28) + grey.tobytes()
            )
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 0x801, 2) + bytes([7, 0])
            )
        return [7, 0], None

    return write


def tinyimagenet(home, patch):
    rows = []
    for number, label in enumerate(["n02", "n01", "n02"]):
        picture(home / f"tiny-imagenet-200/val/images/val_{number}.JPEG", number, 64)
        rows.append(f"val_{number}.JPEG\t{label}\t0\t0\t9\t9")
        picture(home / f"tiny-imagenet-200/train/{label}/images/{label}_{number}.JPEG", number, 64)
    (home / "tiny-imagenet-200/val/val_annotations.txt").write_text("\n".join(rows) + "\n")
    return [1, 0, 1], None


def celeba(home, patch):
    rows = []
    for number, part in enumerate([0, 2, 1, 2]):
        picture(home / f"celeba/img_align_celeba/{number:06}.jpg", number)
        rows.append(f"{number:06}.jpg {part}")
    (home / "celeba/list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    return None, None


def imagenet(home, patch):
    for part in ("train", "val"):
        for label in ("n01440764", "n01443537"):
            picture(home / part / label / "ILSVRC2012_00000001.JPEG")
    return [0, 1], None


def below(folder):
    def write(home, patch):
        picture(home / folder / "a.jpg")
        picture(home / folder / "deeper" / "b.jpg")
        return None, None

    return write


def oct_scans(home, patch):
    for label in ("CNV", "DME", "DRUSEN", "NORMAL"):
        for part in ("train", "test"):
            picture(home / "OCT2017" / part / label / f"{label}-1.jpeg")
    return [0, 1, 2, 3], None


def covid_ct(home, patch):
    for label in ("COVID", "non-COVID"):
        for number in range(232):  # 200 to test, 30 to validate
            picture(home / "SARS-COV-2-CT" / label / f"{number}.png", number, 4)
    return [0] * 200 + [1] * 200, None


def ninco(home, patch):
    for label in ("amphiuma_means", "windsor_chair"):
        picture(home / "NINCO/NINCO_OOD_classes" / label / "1.jpg")
    return [0, 1], None


def random_images(home, patch):
    home.mkdir(parents=True, exist_ok=True)
    np.save(home / "300K_random_images.npy", pixels(5))
    return None, pixels(5)


def tiny_images(home, patch):
    home.mkdir(parents=True, exist_ok=True)
    with (home / "tiny_images.bin").open("wb") as file:
        for image in pixels(6):
            file.write(image.tobytes(order="F"))  # rows vary fastest, then columns, then channels
    (home / "80mn_cifar_idxs.txt").write_text("2\n0\n5\n79000000\n")  # counted from 1
    return None, pixels(6)[[0, 2, 3, 5]]


COPIES = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "gtsrb": gtsrb,
    "svhn": svhn,
    "textures": textures,
    "places365": places365,
    "lsun-crop": odin("LSUN", "test/{}.png"),
    "lsun-resize": odin("LSUN_resize", "LSUN_resize/{}.png"),
    "isun": odin("iSUN", "iSUN_patches/{}.png"),
    "mnist": idx("MNIST"),
    "fashion-mnist": idx("FashionMNIST"),
    "tinyimagenet": tinyimagenet,
    "celeba": celeba,
    "imagenet": imagenet,
    "ssb-hard": below("ssb_hard"),
    "ninco": ninco,
    "oct": oct_scans,
    "covid-ct": covid_ct,
    "inaturalist": below("inaturalist"),
    "openimage-o": below("openimage_o"),
    "300k-random": random_images,
    "80m-tiny": tiny_images,
}


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("below_root", [True, False])
def test_a_copy_in_the_original_layout(tmp_path, monkeypatch, name, below_root):
    home = tmp_path / name if below_root else tmp_path / "root"
    labels, images = COPIES[name](home, monkeypatch)
    found = load_set(name, tmp_path if below_root else home, size=SIZE)
    assert found.name == name
    assert found.image_shape == (SIZE, SIZE)
    assert (None if found.labels is None else found.labels.tolist()) == labels
    if images is not None:
        np.testing.assert_array_equal(
            found.read(torch.arange(len(found))).permute(0, 2, 3, 1).numpy(), images
        )
    for part in CATALOGUE[name].parts:
        if part not in ("test-all", "train-balanced") and not (
            name == "places365" and part == "test"
        ):
            assert len(load_set(f"{name}/{part}", tmp_path if below_root else home, size=SIZE)) >= 1


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path, name):
    with pytest.raises(UserError) as caught:
        load_set(name, tmp_path, size=SIZE)
    message = str(caught.value)
    assert "\n" not in message
    assert CATALOGUE[name].manual in message
    assert (f"robust-ood data download {name}" in message) == bool(CATALOGUE[name].links)


def test_parts_of_tinyimagenet_and_celeba(tmp_path, monkeypatch):
    tinyimagenet(tmp_path / "tinyimagenet", monkeypatch)
    train = load_set("tinyimagenet/train", tmp_path, size=8)
    assert (train.name, train.labels.tolist(), train.class_names) == (
        "tinyimagenet-train",
        [0, 1, 1],
        ("n01", "n02"),
    )
    celeba(tmp_path / "celeba", monkeypatch)
    assert [
        len(load_set(f"celeba/{part}", tmp_path, size=8)) for part in ("train", "val", "test")
    ] == [1, 1, 2]


def test_parts_of_covid_ct_share_no_image(tmp_path, monkeypatch):
    covid_ct(tmp_path / "covid-ct", monkeypatch)
    seen = set()
    for part, count in (("train", 4), ("val", 60), ("test", 400)):
        images = load_set(f"covid-ct/{part}", tmp_path, size=4)
        assert len(images) == count
        assert images.labels.sum() == count / 2
        seen |= {
            pixels.tobytes() + bytes([label])
            for pixels, label in zip(
                images.read(torch.arange(count)).numpy(), images.labels, strict=True
            )
        }
    assert len(seen) == 464


def test_a_set_of_one_class_needs_no_labels(tmp_path, monkeypatch):
    celeba(tmp_path / "celeba", monkeypatch)
    settings = {"test": "celeba", "root": tmp_path, "size": 64}
    faces = OODData(**settings, num_classes=1).inliers("test")
    assert (faces.image_shape, faces.labels.tolist()) == ((64, 64), [0, 0])
    with pytest.raises(UserError, match="has no labels"):
        OODData(**settings, num_classes=2).inliers("test")


def test_a_list_names_a_subset_of_imagenet(tmp_path, monkeypatch):
    imagenet(tmp_path / "imagenet", monkeypatch)
    line = "val/n01443537/ILSVRC2012_00000001.JPEG 7\n"
    (tmp_path / "subset.txt").write_text(line)
    images = load_set({"source": "subset.txt", "base": "imagenet"}, tmp_path, size=8)
    assert (len(images), images.labels.tolist()) == (1, [7])


def test_a_picture_is_a_set_of_one_image(tmp_path):
    picture(tmp_path / "xray.png", 3)
    images = load_set({"source": "xray.png", "size": 8, "policy": "stretch"}, tmp_path)
    assert (images.name, len(images), images.image_shape) == ("xray", 1, (8, 8))


def test_the_first_thousand_of_each_class():
    labels = np.array([1, 0, 1, 1, 0, 2])
    assert first_of_each_class(labels, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_of_each_class(labels, 9).tolist() == list(range(6))


def test_mnist_is_grey_repeated(tmp_path, monkeypatch):
    idx("MNIST")(tmp_path, monkeypatch)
    found = load_set("mnist", tmp_path)
    np.testing.assert_array_equal(found.images, pixels(2, 3, 28)[..., :1].repeat(3, -1))


@pytest.mark.parametrize("name", ["cifar10", "svhn", "mnist", "80m-tiny"])
def test_truncated_files_are_refused(tmp_path, monkeypatch, name):
    COPIES[name](tmp_path, monkeypatch)
    for path in [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".txt"]:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{name}: ") as caught:
        load_set(name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "tinyimagenet",
            "val_0.JPEG n01\nval_1.JPEG\n",
            r"line 2 of .*val_annotations\.txt: expected two words .*, got 'val_1\.JPEG'",
        ),
        ("tinyimagenet", "\n", r"val_annotations\.txt lists no images"),
        ("tinyimagenet", "\xff", r"cannot read .*val_annotations\.txt"),
        (
            "celeba",
            "000000.jpg\n",
            r"line 1 of .*list_eval_partition\.txt: expected two words .*, got '000000\.jpg'",
        ),
        (
            "celeba",
            "000000.jpg two\n",
            r"list_eval_partition\.txt: expected the number .* for 000000\.jpg, got 'two'",
        ),
    ],
)
def test_damaged_tables_are_refused_by_name(tmp_path, monkeypatch, name, content, said):
    COPIES[name](tmp_path / name, monkeypatch)
    (table,) = (path for path in (tmp_path / name).rglob("*.txt"))
    table.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}.*: .*{said}"):
        load_set(name, tmp_path, size=8)


def test_a_pickle_that_is_not_the_published_one_is_not_opened(tmp_path, monkeypatch):
    cifar10(tmp_path, monkeypatch)

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="cifar10: damaged or missing files"):
        load_set("cifar10", tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_80_million_tiny_images_without_its_list_are_refused(tmp_path, monkeypatch):
    tiny_images(tmp_path / "80m-tiny", monkeypatch)
    (tmp_path / "80m-tiny/80mn_cifar_idxs.txt").unlink()
    with pytest.raises(
        UserError, match=r"80mn_cifar_idxs\.txt is missing; without it CIFAR's own images"
    ):
        load_set("80m-tiny", tmp_path)


@pytest.mark.filterwarnings("default:.*expected")
def test_another_number_of_images_is_said(tmp_path, monkeypatch):
    ninco(tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="ninco: expected 5879 images, found 2"):
        load_set("ninco", tmp_path, size=8)


def test_groups_and_copies_name_known_sets():
    assert set(COPIES) == set(CATALOGUE)
    for name, groups in GROUPS.items():
        assert {name, *groups.near, *groups.far} <= set(CATALOGUE)
        assert name not in {*groups.near, *groups.far}
        assert not set(groups.near) & set(groups.far)


# GTSRB's balance
# ------------------------------------------------------------------------------------------------------


def test_balanced_classes(tmp_path, monkeypatch):
    from robust_ood.data.catalogue import layouts
    from robust_ood.data.catalogue.balanced import balanced
    from robust_ood.data.sources.form import ImageForm

    gtsrb(tmp_path, monkeypatch)
    plain = layouts.traffic_signs("train")(tmp_path, ImageForm(16), "signs")
    found = balanced(layouts.traffic_signs("train"), 4)(tmp_path, ImageForm(16), "signs")
    assert np.bincount(found.labels).tolist() == [4, 4, 4]
    everything = torch.arange(12)
    images, originals = found.read(everything), plain.read(torch.arange(9))
    assert torch.equal(images[[0, 1, 2, 4, 8, 9, 10, 11]], originals[[0, 1, 2, 3, 4, 5, 6, 7]])
    for place, source in (
        (3, 0),
        (5, 3),
        (6, 3),
        (7, 3),
    ):  # warped: another picture of the same sign
        distance = (images[place].float() - originals[source].float()).abs().mean()
        assert 1 < distance < 100
    assert not torch.equal(images[5], images[6])
    order = torch.tensor([7, 3, 5])
    assert torch.equal(found.read(order), images[order])  # whatever is read together
    again = balanced(layouts.traffic_signs("train"), 4)(tmp_path, ImageForm(16), "signs")
    assert torch.equal(again.read(everything), images)


def test_no_warp_is_the_image_itself_and_a_shift_is_a_shift():
    images = torch.from_numpy(pixels(2, size=20))
    assert torch.equal(warp(images, torch.zeros(2, 11)), images)
    draws = torch.zeros(2, 11)
    draws[:, 1] = 1.0  # a tenth of the side: two pixels
    torch.testing.assert_close(warp(images, draws)[:, :, :-2], images[:, :, 2:])
    draws = torch.zeros(2, 11)
    draws[:, 2] = -1.0
    torch.testing.assert_close(warp(images, draws)[:, 2:], images[:, :-2])


def test_rotation_agrees_with_another_library():
    from scipy.ndimage import gaussian_filter, rotate

    smooth = gaussian_filter(np.random.default_rng(0).random((24, 24)) * 255, 3)
    smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
    draws = torch.zeros(1, 11)
    draws[:, 0] = 1.0
    found = warp(
        torch.from_numpy(smooth.astype(np.uint8))[None, :, :, None].expand(-1, -1, -1, 3), draws
    )[0, ..., 0]
    expected = rotate(
        smooth.astype(np.uint8).astype(float), 15, reshape=False, order=1, mode="nearest"
    )
    difference = np.abs(found.numpy() - expected)[4:-4, 4:-4].max()
    opposite = np.abs(found.numpy() - rotate(smooth, -15, reshape=False, order=1, mode="nearest"))[
        4:-4, 4:-4
    ].max()
    assert difference < 2 < opposite


def test_warps_have_the_stated_ranges():
    view = WarpedStorage(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(4000, int), np.ones(4000, bool))
    assert view._draws.min() >= -1
    assert view._draws.max() <= 1
    assert abs(view._draws.mean()) < 0.02


# Commands
# -------------------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    code = main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_names_every_set(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert all(name in out for name in [*CATALOGUE, "photographs/test", "noise/spirals"])


def test_verify_counts_reads_and_compares_checksums(tmp_path, monkeypatch, capsys):
    ninco(tmp_path / "ninco", monkeypatch)
    code, _, err = run(capsys, "verify", "ninco", "--root", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "ninco/test: expected 5879 images, found 2" in err
    expect(monkeypatch, "ninco", 2, 2)
    code, out, _ = run(capsys, "verify", "ninco", "--root", tmp_path)
    assert (code, "ninco/test: 2 images, all readable" in out) == (0, True)
    (tmp_path / "ninco/NINCO/NINCO_OOD_classes/amphiuma_means/1.jpg").write_bytes(b"")
    code, _, err = run(capsys, "verify", "ninco", "--root", tmp_path)
    assert (code, "1 images cannot be read, the first:" in err, "1.jpg (empty file)" in err) == (
        2,
        True,
        True,
    )
    (tmp_path / "ninco/NINCO_all.tar.gz").write_bytes(b"not the archive")
    code, _, err = run(capsys, "verify", "ninco", "--root", tmp_path)
    assert (code, "its MD5 sum is" in err) == (2, True)


@pytest.mark.parametrize("name", CATALOGUE)
def test_verify_and_preview_of_each_entry(tmp_path, monkeypatch, capsys, name):
    """The tiny copy is not the original, which `verify` says; of what the catalogue expects of it,
    nothing is amiss.
    """
    COPIES[name](tmp_path / name, monkeypatch)
    monkeypatch.chdir(tmp_path)
    entry = CATALOGUE[name]
    code, out, err = run(capsys, "preview", name, "--root", ".")
    assert (code, err.count("error")) == (0, 0)
    with Image.open(f"{name}.png") as sheet:
        assert len(np.unique(np.asarray(sheet))) > 20
    there = [part for part in entry.parts if (tmp_path / name / entry.parts[part].marker).exists()]
    present = [
        part for part in there if "balanced" not in part
    ]  # 10,000 images a class, however tiny the copy
    links = [link for link in entry.links if (tmp_path / name / link.folder / link.file).exists()]
    if links or any(entry.parts[part].count for part in present):
        code, _, err = run(capsys, "verify", name, "--root", ".")
        assert (code, err.count("\n")) == (2, 1)
        assert ("its MD5 sum is" if links else ": expected ") in err
    links = [replace(link, md5=md5(tmp_path / name / link.folder / link.file)) for link in links]
    parts = {
        part: replace(
            entry.parts[part], count=len(load_set(f"{name}/{part}", tmp_path, size=8)), classes=0
        )
        for part in present
    }
    monkeypatch.setitem(CATALOGUE, name, replace(entry, parts=parts, links=tuple(links)))
    code, out, err = run(capsys, "verify", name, "--root", ".")
    assert (code, err, out.count("checksum as published")) == (0, "", len(links))
    for part in present:
        assert f"{name}/{part}: {parts[part].count} images, all readable" in out


def expect(monkeypatch, name, count, classes):
    entry = CATALOGUE[name]
    parts = {key: replace(part, count=count, classes=classes) for key, part in entry.parts.items()}
    monkeypatch.setitem(CATALOGUE, name, replace(entry, parts=parts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "svnh"], "did you mean 'svhn'"),
        (["download", "imagnet"], "did you mean 'imagenet'"),
        (["download", "imagenet"], "cannot be downloaded for you"),
        (["verify", "svhn"], "no test_32x32.mat"),
        (["preview", "nowhere.npz"], "no such file"),
        (["explode"], "explode"),
        (["overlap", "digits/train"], "second"),
        (["overlap", "digits/train", "digits/test", "--distance", "x"], "distance"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(tmp_path, capsys, arguments, message):
    root = ["--root", tmp_path] if arguments[0] in ("verify", "download", "preview") else []
    code, _, err = run(capsys, *arguments, *root)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_preview_writes_a_picture_of_the_images(tmp_path, capsys):
    code, out, _ = run(
        capsys, "preview", "digits/train", "--output", tmp_path / "sheets" / "digits.png"
    )
    assert (code, "digits.png" in out) == (0, True)
    with Image.open(tmp_path / "sheets" / "digits.png") as sheet:
        tiles = np.asarray(sheet)
        assert sheet.width > 8 * 64
        assert len(np.unique(tiles)) > 50
    code, _, err = run(capsys, "preview", "digits/train", "--output", tmp_path / "digits.nothing")
    assert (code, "output: cannot write" in err) == (2, True)


def test_original_archives_are_downloaded_unpacked_and_read(tmp_path, monkeypatch, capsys):
    """The whole way for an archive and for single compressed files, from a folder in place of a
    host.
    """
    mirror = tmp_path / "mirror"
    ninco(tmp_path / "original", monkeypatch)
    mirror.mkdir()
    with zipfile.ZipFile(mirror / "NINCO_all.zip", "w") as archive:
        for path in (tmp_path / "original").rglob("*.jpg"):
            archive.write(path, path.relative_to(tmp_path / "original"))
    entry = CATALOGUE["ninco"]
    link = replace(
        entry.links[0],
        file="NINCO_all.zip",
        urls=((mirror / "NINCO_all.zip").as_uri(),),
        md5=md5(mirror / "NINCO_all.zip"),
    )
    monkeypatch.setitem(CATALOGUE, "ninco", replace(entry, links=(link,)))
    assert run(capsys, "download", "ninco", "--root", tmp_path / "data")[0] == 0
    assert len(load_set("ninco", tmp_path / "data", size=8)) == 2

    idx("MNIST")(tmp_path / "original", monkeypatch)
    links = []
    for link in CATALOGUE["mnist"].links:
        content = (tmp_path / "original/MNIST/raw" / link.file.removesuffix(".gz")).read_bytes()
        (mirror / link.file).write_bytes(gzip.compress(content))
        links.append(replace(link, urls=((mirror / link.file).as_uri(),), md5=None))
    monkeypatch.setitem(CATALOGUE, "mnist", replace(CATALOGUE["mnist"], links=tuple(links)))
    code, out, _ = run(capsys, "download", "mnist", "--root", tmp_path / "data")
    assert (code, "no checksum is published" in out) == (0, True)
    assert len(load_set(SetSpec("mnist", size=32), tmp_path / "data")) == 2
