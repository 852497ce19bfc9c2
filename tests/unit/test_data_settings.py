"""What users write of sets: paths and names as they come, mistakes that name their key, and the
Python API's own arguments.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_ood import cli
from robust_ood.data import (
    EvaluationLoader,
    ImageSet,
    OODData,
    ReadingOptions,
    SetSpec,
    TrainingLoader,
    load_arrays,
    load_set,
    to_float,
)
from robust_ood.data.preview import contact_sheet
from robust_ood.data.sources.spec import comparable_sets
from robust_ood.errors import UserError


def draw(count=6, size=8):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    np.savez(tmp_path / "train.npz", images=draw(), labels=np.arange(6) % 3)
    np.save(tmp_path / "pool.npy", draw())
    np.save(tmp_path / "labels.npy", np.arange(6) % 3)
    (tmp_path / "leave.txt").write_text("\ufeff1\n", encoding="utf-8")
    return tmp_path


# Mistakes inside a set's settings
# ----------------------------------------------------------------------------------------------------

MISTAKES = [
    ({"count": 0}, "count", "expected a number of images >= 1, got 0"),
    ({"count": "many"}, "count", "expected a whole number or null, got 'many'"),
    ({"count": 2.5}, "count", "expected a whole number or null"),
    ({"count": True}, "count", "expected a whole number or null"),
    ({"size": -3}, "size", "expected a number of pixels >= 1, got -3"),
    ({"size": 0}, "size", "expected a number of pixels >= 1, got 0"),
    ({"size": 10**9}, "size", "expected a number of pixels <= 16384"),
    ({"max_unreadable": 2}, "max_unreadable", "expected a share in [0, 1], got 2"),
    ({"max_unreadable": float("nan")}, "max_unreadable", "expected a finite number"),
    ({"shorter": 9, "policy": "stretch"}, "shorter", "only policy 'resize' has it"),
    ({"shorter": 4, "size": 8}, "shorter", "expected at least size = 8"),
    ({"policy": "squeeze"}, "policy", "expected one of resize, stretch, center_crop, random_crop"),
    ({"bits": 7}, "bits", "expected a number of bits of a value >= 8, got 7"),
    ({"channels": 2}, "channels", "expected one of 1, 3 or null, got 2"),
    ({"polcy": "stretch"}, "polcy", "did you mean 'policy'?"),
    ({"exclude": ""}, "exclude", "is empty"),
    ({"labels": ""}, "labels", "is empty"),
    ({"base": ""}, "base", "is empty"),
    ({"name": ""}, "name", "is empty"),
    ({"source": ""}, "source", "is empty"),
    ({"source": None}, "source", "expected a string, got None"),
    ({"arguments": [1]}, "arguments", "expected a mapping"),
    ({"class_path": "torch.nn.Linear", "source": "pool"}, "class_path", "no such setting"),
]


@pytest.mark.parametrize(("settings", "key", "said"), MISTAKES)
@pytest.mark.parametrize("field", ["train", "test", "outliers", "far", "near", "validation_ood"])
def test_a_mistake_names_its_whole_key_and_what_is_accepted(root, field, settings, key, said):
    spec = {"source": "pool", **settings}
    several = field in ("far", "near", "validation_ood")
    given = ["noise/uniform", spec] if several else spec
    path = f"data.{field}[1]" if several else f"data.{field}"
    with pytest.raises(UserError) as caught:
        OODData(root=root, **{field: given})
    message = str(caught.value)
    assert message.startswith(f"{path}.{key}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "expected a set's name or path, or a mapping with 'source' and settings, got 3"),
        ("[3]", "expected a set's name or path"),
        ("{source: pool", "expected a set's name or path"),
        ("", "is empty"),
        (None, "expected a set's name or path"),
        ({}, "source: not given"),
        ({"class_path": "torch.utils.data.Dataset"}, "expected robust_ood.data.SetSpec"),
        ({"class_path": "robust_ood.data.SetSpec", "init_args": [1]}, "expected a mapping"),
        ({"class_path": "SetSpec", "init_args": {"source": "pool", "count": 0}}, "count: expected"),
    ],
)
def test_what_is_no_set_names_its_place(root, given, said):
    with pytest.raises(UserError, match=r"data\.near\[0\]") as caught:
        OODData(root=root, near=[given])
    assert said in str(caught.value)


@pytest.mark.parametrize("form", ["mapping", "class path", "spec", "path"])
def test_all_forms_of_a_set_are_the_same(root, form):
    spec = {
        "mapping": {"source": "pool.npy"},
        "class path": {
            "class_path": "robust_ood.data.SetSpec",
            "init_args": {"source": "pool.npy"},
        },
        "spec": SetSpec("pool.npy"),
        "path": Path("pool.npy"),
    }[form]
    assert len(load_set(spec, str(root))) == 6
    ((_, images),) = OODData(far=[spec], root=str(root)).ood_sets()
    assert images.name == "pool"


def test_a_run_resumes_whichever_release_wrote_its_sets():
    written = {"source": "svhn", "count": 5}
    whole = {**vars(SetSpec("svhn")), "count": 5}
    for old in (written, whole, {"class_path": "robust_ood.data.SetSpec", "init_args": written}):
        assert comparable_sets([old, "lsun"]) == [written, "lsun"]
    assert comparable_sets(vars(SetSpec("svhn"))) == "svhn"
    assert comparable_sets({"workers": 3}) == {"workers": 3}


# Paths
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "~/pool.npy",
        {"source": "~/pool", "labels": "~/labels.npy"},
        {"source": "pool", "exclude": "~/leave.txt"},
        {"source": "~/list.txt", "base": "~/pictures", "size": 8},
    ],
)
@pytest.mark.parametrize("data_root", ["~", "elsewhere"])
def test_the_home_folder_in_every_path(root, monkeypatch, spec, data_root):
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(root)
    (root / "pictures").mkdir()
    Image.fromarray(draw()[0]).save(root / "pictures" / "a.png")
    (root / "list.txt").write_text("a.png 0")
    (root / "elsewhere").mkdir()
    np.save(root / "elsewhere" / "pool.npy", draw())
    assert len(load_set(spec, data_root)) >= 1
    assert OODData(far=[spec], root=data_root).ood_sets()


@pytest.mark.parametrize("value", ["", 3, None])
def test_a_root_that_is_no_path(value):
    with pytest.raises(UserError, match=r"data\.root: (is empty; )?expected the path of a folder"):
        OODData(root=value)


def test_the_commands_on_data_take_the_home_folder_and_refuse_empty_paths(
    root, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(root))
    assert cli.data(["preview", "pool", "--root=~", "--output=~/sheet.png"]) == 0
    assert (root / "sheet.png").exists()
    for option in ("--root=", "--output="):
        assert cli.data(["preview", "pool", option]) == 2
        assert "is empty; expected a path" in capsys.readouterr().err


def write_list(root, content):
    (root / "pictures").mkdir(exist_ok=True)
    for name in ("a b.png", "c,1.png"):
        Image.fromarray(draw()[0]).save(root / "pictures" / name)
    (root / "list.txt").write_bytes(content)
    return {"source": "list.txt", "base": "pictures", "size": 8}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("between", [b" ", b"\t", b",", b", ", b" \t "])
@pytest.mark.parametrize("quotes", [b"", b'"'])
def test_image_lists_as_programs_write_them(root, mark, end, between, quotes):
    lines = []
    for name, label in ((b"a b.png", b"1"), (b"c,1.png", b"0")):
        lines.append(quotes + name + quotes + between + label)
    found = load_set(write_list(root, mark + end.join(lines) + end), root)
    assert found.labels.tolist() == [1, 0]
    assert len(found.read(torch.arange(2))) == 2


def test_a_list_of_names_alone_and_one_that_is_no_utf8(root):
    assert load_set(write_list(root, b"\xef\xbb\xbfa b.png\nc,1.png"), root).labels is None
    with pytest.raises(UserError, match=r"UTF-16\); expected UTF-8"):
        load_set(write_list(root, "a b.png 1".encode("utf-16")), root)


@pytest.mark.parametrize("listed", [False, True])
def test_file_names_that_are_not_utf8(root, listed):
    folder = os.fsencode(root) + b"/odd/caf\xe9"
    os.makedirs(folder)
    picture = root / "good.png"
    Image.fromarray(draw()[0]).save(picture)
    for name in (b"/\xff.png", b"/damaged\xfe.png"):
        with open(folder + name, "wb") as file:
            file.write(picture.read_bytes() if b"damaged" not in name else b"")
    spec = {"source": "odd", "size": 8, "max_unreadable": 0.5}
    if listed:
        (root / "odd.txt").write_bytes(b"odd/caf\xe9/\xff.png 0\nodd/caf\xe9/damaged\xfe.png 0")
        spec["source"] = "odd.txt"
    with pytest.warns(UserWarning, match=r"caf\\xe9/damaged\\xfe\.png \(empty file\)"):
        found = load_set(spec, root)
    assert len(found) == 1
    for name in found.class_names:
        name.encode()  # results and reports are UTF-8


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_another_locale_reads_the_same_names(root, utf8):
    (root / "caf\u00e9").mkdir()
    Image.fromarray(draw()[0]).save(root / "caf\u00e9" / "\u00fc.png")
    (root / "list.txt").write_text("\ufeffcaf\u00e9/\u00fc.png 0\n", encoding="utf-8")
    code = (
        "from robust_ood.data import load_set\n"
        "for source in ('list.txt', 'folders'):\n"
        "    print(len(load_set({'source': source, 'size': 8}, '.')))\n"
    )
    (root / "folders").mkdir()
    (root / "folders" / "caf\u00e9").symlink_to(root / "caf\u00e9")
    plain = {"LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, **plain, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        capture_output=True,
        check=False,
    )
    assert found.stdout.split() == [b"1", b"1"], found.stderr.decode()


def test_a_deleted_working_folder_is_one_line(tmp_path, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    before = os.getcwd()
    os.chdir(folder)
    folder.rmdir()
    try:
        assert cli.data(["list"]) == 2
    finally:
        os.chdir(before)
    shown = capsys.readouterr().err
    assert shown == "error: working folder: it was deleted; change to one that exists\n"


# Arrays
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (np.array("cat"), r"class_names: expected a list \(K,\)"),
        (np.array([["cat", "dog", "emu"]]), r"class_names: expected a list \(K,\)"),
        (np.array(["cat", "dog"]), "labels reach 2, but class_names has only 2"),
    ],
)
def test_class_names_that_are_no_list_or_too_few(root, names, said):
    np.savez(root / "pets.npz", images=draw(), labels=np.arange(6) % 3, class_names=names)
    with pytest.raises(UserError, match=f"pets: {said}"):
        load_arrays(str(root / "pets.npz"))
    with pytest.raises(UserError, match=rf"data\.train: pets: {said}"):
        OODData(train="pets.npz", root=root, num_classes=3).inliers("train")
    with pytest.raises(UserError, match=said):
        OODData(train="pets.npz", test="train.npz", root=root, num_classes=3).setup("fit")


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
@pytest.mark.parametrize("name", ["train.npz", "pool.npy", "labels.npy"])
def test_a_file_that_may_not_be_read_is_not_called_truncated(root, name):
    (root / name).chmod(0)
    spec = {"source": "pool.npy", "labels": name} if name == "labels.npy" else name
    with pytest.raises(UserError, match=r"cannot read .*Permission denied"):
        load_set(spec, root)


def test_a_refusal_of_the_system_is_not_called_truncated(root, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"train: cannot read .*train\.npz \(Permission denied\)"):
        load_arrays(root / "train.npz")


# Arguments in Python
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OODData(near="svhn"), r"data\.near: expected a list of sets"),
        (lambda: OODData(near={"source": "svhn"}), r"data\.near: expected a list of sets"),
        (lambda: OODData(far=3), r"data\.far: expected a list of sets"),
        (lambda: OODData(train=3), r"data\.train: expected a set's name"),
        (lambda: OODData(batch_size="64"), r"data\.batch_size: expected a number >= 1, got '64'"),
        (lambda: OODData(batch_size=2.5), r"data\.batch_size: expected a number >= 1"),
        (lambda: OODData(batch_size=True), r"data\.batch_size: expected a number >= 1"),
        (lambda: OODData(num_classes=0), r"data\.num_classes: expected a number >= 1"),
        (lambda: OODData(size="8"), r"data\.size: expected a number of pixels"),
        (lambda: OODData(outlier_batch_size=99999999), r"outlier_batch_size: .* <= 1048576"),
        (lambda: OODData(evaluation_batch_size=10**12), r"evaluation_batch_size: .* <= 1048576"),
        (lambda: ReadingOptions(memory_limit=-1), r"memory_limit: expected .* >= 0"),
        (lambda: loader(batch_size=0), "batch_size: expected a number >= 1, got 0"),
        (lambda: loader(batch_size=2, limit=-1), "limit: expected a number >= 1, got -1"),
        (lambda: loader(batch_size=2, limit=0), "limit: expected a number >= 1, got 0"),
        (lambda: loader(batch_size=2, rank=2, world=2), "rank: expected a number <= 1, got 2"),
        (lambda: loader(batch_size=2, world=0), "world: expected a number >= 1, got 0"),
        (lambda: training(batch_size=0), "batch_size: expected a number >= 1, got 0"),
        (lambda: training(outlier_batch_size=-1), "outlier_batch_size: expected a number >= 0"),
        (lambda: contact_sheet(images(), rows=0), "rows: expected a number >= 1"),
        (lambda: to_float(np.zeros((1, 3, 2, 2))), "images: expected a tensor of uint8"),
        (lambda: to_float(torch.zeros(1, 3, 2, 2)), "images: expected a tensor of uint8"),
        (lambda: ImageSet("a", [draw()]), "a: images: expected an array"),
        (lambda: ImageSet("a", torch.zeros(2, 3, 4, 4)), "a: images: expected an array"),
        (lambda: ImageSet("a", draw().astype(float)), "a: expected images of dtype uint8"),
        (lambda: ImageSet("a", draw(), [0, 1]), "a: expected 6 integers as labels"),
        (lambda: ImageSet("a", draw(), [[0], [1, 2]]), "a: labels: expected 6 integers"),
        (lambda: ImageSet("a", draw(), [0.5] * 6), "a: expected 6 integers as labels"),
        (lambda: SetSpec("a", count="5"), "count: expected a number of images >= 1, got '5'"),
        (lambda: SetSpec("a", max_unreadable="x"), "max_unreadable: expected a share"),
        (lambda: SetSpec("a", exclude=3), "exclude: expected a name or path, got 3"),
        (lambda: SetSpec(None), "source: expected a set's name or path"),
        (lambda: OODData().evaluation_loader(images(), limit=-1), "limit: expected a number >= 1"),
    ],
)
def test_an_argument_without_meaning_is_one_line(make, said):
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def images():
    return ImageSet("a", draw(), np.arange(6))


def loader(**settings):
    return EvaluationLoader(images(), **settings)


def training(**settings):
    sizes = {"batch_size": 2, "outlier_batch_size": 2, **settings}
    return TrainingLoader(images(), images(), seed=0, **sizes)


def test_labels_as_a_list_or_a_tensor_and_numbers_of_numpy():
    assert ImageSet("a", draw(), [0, 1, 2, 0, 1, 2]).labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert ImageSet("a", draw(), torch.arange(6)).labels.tolist() == list(range(6))
    assert OODData(batch_size=np.int64(3)).batch_size == 3


# What training does not read
# ----------------------------------------------------------------------------------------------------


def test_training_says_which_test_sets_are_not_there(root):
    data = OODData(train="train.npz", near=["nowhere"], far=["svhn"], root=root, outliers=None)
    with pytest.warns(UserWarning, match=r"data\.near: there is no set.*'nowhere'") as said:
        data.setup("fit")
    assert len(said) == 1
