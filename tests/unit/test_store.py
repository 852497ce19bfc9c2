"""The store: whole cells or none, whatever happens, and one process at a time for each."""

from __future__ import annotations

import json
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
