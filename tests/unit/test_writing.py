"""Files are replaced whole; links and special files are not replaced at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robust_ood.writing import replace_file


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    replace_file(path, "old")
    replace_file(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["link to a file", "link to nothing", "pipe"])
def test_what_is_no_file_is_kept(tmp_path, kind):
    target = tmp_path / "target"
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    if kind == "link to a file":
        target.write_text("kept")
    before = path.lstat()
    with pytest.raises(OSError, match="is not replaced") as caught:
        replace_file(path, "new")
    assert caught.value.filename == str(path)
    assert path.lstat() == before
    assert not target.exists() or target.read_text() == "kept"


def test_a_device_is_kept():
    with pytest.raises(OSError, match="special file"):
        replace_file(Path(os.devnull), "new")
