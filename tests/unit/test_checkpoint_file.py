"""Checkpoints on disk: damage is found, and nothing passes through the temporary folder."""

from __future__ import annotations

import os
import random
import tempfile

import pytest
import torch

from robust_ood.callbacks.checkpoint_file import CheckpointFile, count_values
from robust_ood.errors import UserError
from robust_ood.models import read_checkpoint

CONTENT = {
    "state_dict": {"weight": torch.arange(600.0), "empty": torch.zeros(0)},
    "loops": {"fit_loop": {"step": [3, "x", None]}},
}


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a" / "last.ckpt"
    CheckpointFile().save_checkpoint(CONTENT, path)
    content = read_checkpoint(path)
    sizes = content.pop("sizes")
    assert sizes == {"state_dict": 600, "loops": 3}
    assert same(content, CONTENT)
    loaded = CheckpointFile().load_checkpoint(path, weights_only=True)
    assert same(loaded["state_dict"], CONTENT["state_dict"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_flipped_bit_changes_what_is_read(tmp_path):
    """Anywhere in the file: in tensors, the pickle and the archive's own tables."""
    path = tmp_path / "last.ckpt"
    CheckpointFile().save_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    expected = read_checkpoint(path)
    draws = random.Random(0)
    refused = 0
    for _ in range(400):
        flipped = bytearray(whole)
        flipped[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        path.write_bytes(flipped)
        try:
            content = read_checkpoint(path)
        except UserError:
            refused += 1
            continue
        assert same(content, expected)
    assert refused > 200


def test_a_flipped_bit_of_a_tensor_is_found_by_lightning_s_reading_too(tmp_path):
    path = tmp_path / "last.ckpt"
    CheckpointFile().save_checkpoint(CONTENT, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor(300.0).numpy().tobytes())] ^= 4
    path.write_bytes(content)
    for read in (read_checkpoint, CheckpointFile().load_checkpoint):
        with pytest.raises(UserError, match=r"^checkpoint: .*last\.ckpt is damaged .*checksum"):
            read(path)


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_without_checksums_are_read(tmp_path, sums, zipped):
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(sums)
    try:
        torch.save(CONTENT, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_checkpoint(tmp_path / "a.pt"), CONTENT)


def test_the_temporary_folder_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        tempfile.mkstemp()
    CheckpointFile().save_checkpoint(CONTENT, tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("room", [10, 200, 1500, 3000])
def test_a_full_disk_names_file_and_folder(tmp_path, room):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(UserError) as caught:
            CheckpointFile().save_checkpoint(CONTENT, tmp_path / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = f"output: cannot write the checkpoint last.ckpt into {tmp_path} (File too large)"
    assert str(caught.value) == message


def test_values_are_counted():
    assert count_values({"a": [1, None, ("x",)], "b": torch.zeros(2, 3), "c": {}}) == 9
