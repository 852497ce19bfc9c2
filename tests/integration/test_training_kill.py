"""The short form of benchmarks/kill_and_resume.py: a run killed with SIGKILL ends as the run never
killed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_IMAGES = ("jem", "confidence_gan", "flow", "autoencoder")
"""Recipes of methods that model images: chains in a buffer, several networks, no classifier."""
WITH_STATE = ("atom", "atd")
"""Recipes that keep more than weights: a pool's hard outliers, the Gaussians of features."""


def killed_runs(folder, kills, *settings):
    """Return what the script prints of a run with so many kills, which must agree."""
    command = [
        *(sys.executable, "benchmarks/kill_and_resume.py", "--folder", str(folder)),
        *("--processes", "1", "--loaders", "memory", "--trials", "1", "--kills", str(kills)),
        *settings,
        *("--trainer.max_epochs", "2", "--trainer.limit_val_batches", "1"),
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_run_killed_twice_ends_as_the_run_never_killed(tmp_path):
    said = killed_runs(tmp_path, 2, "--trainer.limit_train_batches", "12")
    assert "2 kills in 1 runs, 0 run(s) that ended differently" in said


def test_a_run_killed_among_the_replays_of_a_batch(tmp_path):
    """Checkpoints every third step, batches trained four times in a row."""
    attack = "--model.init_args.inlier_attack"
    said = killed_runs(
        tmp_path, 1, f"{attack}.steps", "1", f"{attack}.replays", "4", f"{attack}.step_size",
        "16/255", "--model.init_args.attack_mode", "train", "--no-robust-validation",
        "--trainer.limit_train_batches", "10",
    )  # fmt: skip
    assert "1 kills in 1 runs, 0 run(s) that ended differently" in said


@pytest.mark.parametrize("recipe", OF_IMAGES)
def test_killed_runs_of_methods_that_model_images(tmp_path, recipe):
    config = f"configs/experiments/digits_{recipe}.yaml"
    said = killed_runs(
        tmp_path, 1, "--config", config, "--no-robust-validation",
        "--data.outlier_batch_size", "0", "--trainer.limit_train_batches", "6",
    )  # fmt: skip
    assert "1 kills in 1 runs, 0 run(s) that ended differently" in said


@pytest.mark.parametrize("recipe", WITH_STATE)
def test_killed_runs_of_methods_with_a_state_of_their_own(tmp_path, recipe):
    config = f"configs/experiments/digits_{recipe}.yaml"
    said = killed_runs(
        tmp_path, 1, "--config", config, "--no-robust-validation",
        "--trainer.limit_train_batches", "5",
    )  # fmt: skip
    assert "1 kills in 1 runs, 0 run(s) that ended differently" in said
