"""The store: whole cells or none, whatever happens, and one process at a time for each."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from robust_ood.errors import UserError
from robust_ood.evaluation.store import Cell, FolderStore, Store, read_cell

CELL = Cell(
    {"scores": np.array([0.5, -2.0], np.float32), "indices": np.arange(2)},
    {"seconds": 1.5, "members": ["a"]},
)


def filled(folder):
    store = FolderStore(folder)
    with store.claim("work", wait=False) as mine:
        assert mine
        store.write("abc", CELL)
    return store


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_cell_comes_back_as_it_was(tmp_path, kind):
    store = Store() if kind == "memory" else filled(tmp_path)
    store.write("abc", CELL)
    found = store.read("abc")
    assert store.read("abd") is None
    assert np.array_equal(found.arrays["scores"], CELL.arrays["scores"])
    assert found.arrays["scores"].dtype == np.float32
    assert found.about["seconds"] == 1.5
    assert found.about["members"] == ["a"]
    assert store.damage == {}


def test_the_file_is_read_without_the_store(tmp_path):
    path = tmp_path / filled(tmp_path).path("abc")
    with np.load(path) as archive:
        assert archive["scores"].tolist() == [0.5, -2.0]
        assert json.loads(str(archive["about"]))["key"] == "abc"
    assert read_cell(path).about["seconds"] == 1.5


def damage(path, kind):
    content = path.read_bytes()
    if kind == "renamed":
        path.rename(path.with_name("abd.npz"))
        return "abd"
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 255
    path.write_bytes(
        {"empty": b"", "cut": content[:-40], "text": b"no cell", "a bit": bytes(flipped)}[kind]
    )
    return "abc"


@pytest.mark.parametrize("kind", ["empty", "cut", "text", "a bit", "renamed"])
def test_a_damaged_cell_counts_as_missing_and_is_reported(tmp_path, kind):
    store = filled(tmp_path)
    key = damage(tmp_path / store.path("abc"), kind)
    assert store.read(key) is None
    (line,) = store.damage.values()
    assert f"{key}.npz is unreadable" in line
    with pytest.raises(UserError, match="unreadable"):
        read_cell(tmp_path / store.path(key))
    store.write(key, CELL)
    assert store.read(key) is not None


FULL = Cell(
    {
        "scores": np.array([0.5, -2.0, 1.0], np.float32),
        "indices": np.arange(3),
        "winners": np.array([0, 1, 0], np.int16),
    },
    {"stage": "score", "members": ["a", "b"], "start": 0, "stop": 3},
)
CHANGES = {
    "scores cut": ({"scores": FULL.arrays["scores"][:1]}, {}),
    "all cut": ({name: array[:1] for name, array in FULL.arrays.items()}, {}),
    "another score": ({"scores": np.array([0.5, -2.0, 1.5], np.float32)}, {}),
    "NaN": ({"scores": np.array([0.5, np.nan, 1.0], np.float32)}, {}),
    "infinite": ({"scores": np.array([0.5, np.inf, 1.0], np.float32)}, {}),
    "texts": ({"scores": np.array(["a", "b", "c"])}, {}),
    "a table": ({"scores": np.zeros((3, 2), np.float32)}, {}),
    "no scores": ({"scores": None}, {}),
    "no indices": ({"indices": None}, {}),
    "no member": ({"winners": np.array([0, 9, 0], np.int16)}, {}),
    "no members": ({}, {"members": None}),
    "other settings": ({}, {"seconds": -1}),
}


@pytest.mark.parametrize("digest", [True, False], ids=["now", "of earlier releases"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_cell_that_does_not_hold_what_it_must_counts_as_missing(tmp_path, change, digest):
    if not digest and change in ("all cut", "another score", "other settings"):
        pytest.skip("only a digest shows it")
    store = FolderStore(tmp_path)
    with store.claim("work", wait=False):
        store.write("abc", FULL)
    path = tmp_path / store.path("abc")
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    about = json.loads(str(arrays.pop("about")))
    new_arrays, new_about = CHANGES[change]
    about.update(new_about)
    if not digest:
        del about["digest"]
    arrays.update(new_arrays)
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(path, about=np.array(json.dumps(about)), **kept)
    assert store.read("abc") is None
    assert f"{path} is unreadable" in store.damage["abc"]
    assert FolderStore(tmp_path).has("abc") is False


@pytest.mark.parametrize("about", ["[]", "3", "null", '{"key": 3}', "{", '"abc"'])
def test_a_cell_that_describes_nothing_counts_as_missing(tmp_path, about):
    store = filled(tmp_path)
    np.savez(tmp_path / store.path("abc"), about=np.array(about), **CELL.arrays)
    assert store.read("abc") is None


def test_an_array_in_place_of_a_cell_counts_as_missing(tmp_path):
    store = filled(tmp_path)
    with (tmp_path / store.path("abc")).open("wb") as file:
        np.save(file, CELL.arrays["scores"])
    assert store.read("abc") is None


@pytest.mark.parametrize("when", ["between two", "within one"])
def test_a_deleted_folder_of_cells_is_made_again(tmp_path, when):
    store = filled(tmp_path)
    if when == "between two":
        shutil.rmtree(tmp_path / "store" / "cells")
        store = FolderStore(tmp_path)
    with store.claim("work", wait=False):
        shutil.rmtree(tmp_path / "store" / "cells", ignore_errors=True)
        store.write("abc", CELL)
    assert FolderStore(tmp_path).has("abc")


def test_what_a_killed_process_left_is_removed(tmp_path):
    cells = tmp_path / store_cells(tmp_path)
    stale, fresh = cells / ".abd.npz.77.partial", cells / ".abe.npz.78.partial"
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (1, 1))
    with FolderStore(tmp_path).claim("work", wait=False):
        assert not stale.exists()
        assert fresh.exists()  # another process may be writing it


def store_cells(folder):
    filled(folder)
    return folder / "store" / "cells"


def test_half_a_write_changes_nothing(tmp_path, monkeypatch):
    store = filled(tmp_path)

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        store.write("abd", CELL)
    monkeypatch.undo()
    assert store.read("abd") is None
    assert store.read("abc") is not None
    assert [path.name for path in (tmp_path / "store" / "cells").iterdir()] == ["abc.npz"]


def test_one_claims_and_the_other_does_not(tmp_path):
    first, second = FolderStore(tmp_path), FolderStore(tmp_path)
    with first.claim("work", wait=False) as mine:
        assert mine
        with second.claim("work", wait=False) as also:
            assert not also
        with second.claim("other work", wait=False) as other:
            assert other
    with second.claim("work", wait=True) as now:
        assert now


def test_nothing_is_made_before_the_first_claim(tmp_path):
    FolderStore(tmp_path / "out").read("abc")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ['{"layout": 7}', "[]", "nonsense", None])
def test_a_store_of_another_layout_is_refused(tmp_path, content):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "other.bin").write_bytes(b"someone else's")
    if content is not None:
        (tmp_path / "store" / "store.json").write_text(content)
    with pytest.raises(UserError, match=r"^output: .*another folder") as caught:
        FolderStore(tmp_path)
    assert "\n" not in str(caught.value)
