"""A full disk ends a training run in one line that names file and folder; what was whole stays."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from robust_ood import cli
from robust_ood.callbacks import Checkpoints


def no_space(*_, **__):
    # As the system's calls for writing say it: without the file.
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def after(count, original):
    """Return a function that finds the disk full after so many calls."""
    calls = []

    def call(*arguments, **settings):
        calls.append(1)
        if len(calls) > count:
            no_space()
        return original(*arguments, **settings)

    return call


WRITERS = {
    "last.ckpt": (torch, "save", 2),
    "metrics.csv": (csv.DictWriter, "writerow", 5),
    "events.out.tfevents": (RecordWriter, "write", 12),
    "config.yaml": (Path, "write_bytes", 0),
}
"""What writes each file, and how often it succeeds."""


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_file_and_folder(
    capsys, monkeypatch, experiment, trained_run, tmp_path, name
):
    folder = tmp_path / "run"
    fit = ["fit", "-c", str(experiment), "--output", str(folder), "--checkpoints.every_n_steps"]
    owner, method, count = WRITERS[name]
    with monkeypatch.context() as patched:
        patched.setattr(owner, method, after(count, getattr(owner, method)))
        assert cli.train([*fit, "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert name in line
    assert str(folder) in line
    assert "No space left on device" in line
    assert ".partial" not in line
    assert not list(folder.rglob("*.partial"))
    way = ["--replace", "true"]
    if (folder / "last.ckpt").exists():
        torch.load(folder / "last.ckpt", weights_only=True)  # whole
        way = ["--ckpt_path", "last"]
    assert cli.train([*fit, "2", *way]) == 0
    wanted = torch.load(trained_run / "last.ckpt", weights_only=True)["state_dict"]
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[key], value) for key, value in wanted.items())
    assert (folder / "metrics.csv").read_text() == (trained_run / "metrics.csv").read_text()


@pytest.fixture
def small_disk(tmp_path):
    """A file system with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_while_a_run_trains(
    capsys, monkeypatch, experiment, small_disk, trained_run
):
    folder = small_disk / "run"
    fit = ["fit", "-c", str(experiment), "--output", str(folder), "--checkpoints.every_n_steps"]

    def fill(self, trainer, *_):
        if trainer.global_step == 5:
            with (small_disk / "filler").open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        return

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "on_train_batch_start", fill)
        assert cli.train([*fit, "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(folder) in line
    assert not list(folder.rglob("*.partial"))
    (small_disk / "filler").unlink()
    assert cli.train([*fit, "2", "--ckpt_path", "last"]) == 0
    assert (folder / "metrics.csv").read_text() == (trained_run / "metrics.csv").read_text()
