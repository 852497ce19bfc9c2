"""Two processes of one training run, of which one stands still, is killed, or loses the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout

from robust_ood import cli
from robust_ood.callbacks import Checkpoints
from robust_ood.cli.run_lock import LOCK

ROOT = Path(__file__).parents[2]
DEADLINE = 120
IMPATIENT = """
import sys
from robust_ood.cli import interrupts, run_lock, train
from robust_ood.evaluation import claims
claims.PATIENCE, claims.BEAT = 2, 0.5
interrupts.CHECK = 0.2
run_lock.PATIENCE = 0.2
sys.exit(train())
"""


@pytest.fixture
def two(experiment, tmp_path):
    """Start a run of two processes that ends only when it is told to: `two(folder)`."""
    started = []

    def start(folder, *options):
        script = tmp_path / "impatient.py"
        script.write_text(IMPATIENT)
        command = [sys.executable, str(script), "fit", "-c", str(experiment)]
        command += ["--output", str(folder), "--trainer.max_epochs", "100000"]
        command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
        command += ["--trainer.limit_val_batches", "0", "--checkpoints.every_n_steps", "5"]
        process = subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()


def children(number) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(number)], capture_output=True, text=True, check=False
    )
    found = []
    for child in map(int, listed.stdout.split()):
        if Path(f"/proc/{child}/environ").exists() and is_rank(child, "1"):
            found.append(child)
    return found


def is_rank(number, rank) -> bool:
    try:
        return f"\0LOCAL_RANK={rank}\0" in Path(f"/proc/{number}/environ").read_text()
    except OSError:
        return False


def wait_until(process, condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def train_for_a_while(process, folder) -> int:
    """Wait for the first checkpoint; return the number of the second process."""
    wait_until(process, (folder / "last.ckpt").exists)
    (second,) = children(process.pid)
    return second


def test_one_stands_still_goes_on_and_is_killed(two, capsys, experiment, tmp_path):
    folder = tmp_path / "run"
    process = two(folder)
    second = train_for_a_while(process, folder)
    # One lock for both, which keeps a third process out.
    with pytest.raises(Timeout), FileLock(folder / LOCK, timeout=0):
        pass
    assert cli.train(["fit", "-c", str(experiment), "--output", str(folder)]) == 2
    assert "another training is running" in capsys.readouterr().err
    os.kill(second, signal.SIGSTOP)
    line = process.stderr.readline()
    assert line.startswith("waiting for process ")
    assert f":{second}, at training as process 1 of 2 since " in line
    rows = (folder / "metrics.csv").read_text().count("\n")
    os.kill(second, signal.SIGCONT)
    wait_until(process, lambda: (folder / "metrics.csv").read_text().count("\n") > rows + 2)
    os.kill(second, signal.SIGKILL)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGKILL
    assert said.splitlines() == [
        f"error: process 1 (pid {second}) was ended by SIGKILL; {folder / 'last.ckpt'} is kept; "
        "continue with --ckpt_path last"
    ]
    assert not list(folder.glob("*.partial"))
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] >= 5
    with FileLock(folder / LOCK, timeout=10):
        pass


def test_the_second_one_ends_when_the_first_one_is_killed(two, tmp_path):
    folder = tmp_path / "run"
    process = two(folder)
    train_for_a_while(process, folder)
    process.kill()
    said = process.stderr.read()  # ends when both have
    (line,) = said.splitlines()
    assert line.startswith("error: another process of this run ended")
    assert line.endswith(f"{folder / 'last.ckpt'} is kept; continue with --ckpt_path last")


def test_sigterm_to_the_first_one_stops_both_after_the_same_step(two, tmp_path):
    folder = tmp_path / "run"
    process = two(folder)
    train_for_a_while(process, folder)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM
    (line,) = said.splitlines()
    assert line.startswith("stopped by SIGTERM after step ")
    assert not list(folder.glob(".process-*"))


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_second_ctrl_c_says_what_is_kept(
    capsys, monkeypatch, experiment, tmp_path, has_checkpoint
):
    def interrupt_twice(self, trainer, *_):
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Checkpoints, "on_train_batch_start", interrupt_twice)
    folder = tmp_path / "run"
    every = "2" if has_checkpoint else "100"
    fit = ["fit", "-c", str(experiment), "--output", str(folder)]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.train([*fit, "--checkpoints.every_n_steps", every]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    kept = "it had written no checkpoint yet"
    if has_checkpoint:
        kept = f"{folder / 'last.ckpt'} is kept; continue with --ckpt_path last"
    assert capsys.readouterr().err.splitlines() == [f"stopped at once; {kept}"]
    assert (folder / "last.ckpt").exists() == has_checkpoint
    assert not list(folder.rglob("*.partial"))
