"""Two trainings in one folder: the second is refused while the first lives, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from filelock import FileLock

from robust_ood import cli
from robust_ood.cli import run_lock

HOLD = """
import sys, time
from pathlib import Path
from robust_ood.cli.run_lock import RunLock
lock = RunLock()
lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
WAYS = [[], ["--replace", "true"], ["--ckpt_path", "last"]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.1)


def fit(experiment, folder, *options):
    return ["fit", "-c", str(experiment), "--output", str(folder), *options]


@pytest.mark.parametrize("way", WAYS, ids=["anew", "replace", "resume"])
def test_a_second_training_is_refused(capsys, experiment, own_run, way):
    before = (own_run / "last.ckpt").read_bytes(), (own_run / "metrics.csv").read_text()
    with FileLock(own_run / run_lock.LOCK):
        assert cli.train(fit(experiment, own_run, *way)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"error: output: another training is running in {own_run}" in said
    assert before == ((own_run / "last.ckpt").read_bytes(), (own_run / "metrics.csv").read_text())


def test_death_releases_the_folder(experiment, own_run):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(own_run)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert cli.train(fit(experiment, own_run, "--replace", "true")) == 2
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert cli.train(fit(experiment, own_run, "--replace", "true")) == 0
    finally:
        holder.kill()
        holder.wait()


def test_the_folder_is_free_after_a_mistake(capsys, experiment, own_run):
    assert cli.train(fit(experiment, own_run)) == 2
    assert "holds a run" in capsys.readouterr().err
    with FileLock(own_run / run_lock.LOCK, timeout=0):
        pass


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "2"}, False),
    ],
)
def test_the_first_process_holds_the_lock_for_all(monkeypatch, tmp_path, environment, is_first):
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lock = run_lock.RunLock()
    lock.acquire(tmp_path)
    assert (tmp_path / run_lock.LOCK).exists() == is_first
    lock.release()


def test_two_that_begin_in_a_new_folder_at_once(experiment, trained_run, tmp_path):
    folder = tmp_path / "run"
    code = "import sys; from robust_ood.cli import train; sys.exit(train(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *fit(experiment, folder)]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    whole = torch.load(trained_run / "last.ckpt", weights_only=True)["state_dict"]
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], value) for name, value in whole.items())
    assert (folder / "metrics.csv").read_text() == (trained_run / "metrics.csv").read_text()
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
