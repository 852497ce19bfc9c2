"""Training on a folder of images with outliers in a `.npy`, read by two workers, killed and
resumed: the same run.
"""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_ood.cli import main, train

ROOT = Path(__file__).parents[2]
STEPS = 8 * (30 // 4)
CONFIG = """
trainer: {accelerator: cpu, devices: 1, max_epochs: 8}
checkpoints: {every_n_steps: 1}
net: {class_path: robust_ood.models.WideResNet, init_args: {depth: 10, width: 1, num_classes: 3}}
model: {class_path: robust_ood.training.OE, init_args: {outlier_weight: 0.5}}
data:
  train: pets
  outliers: outliers.npy
  size: 12
  num_classes: 3
  batch_size: 4
  outlier_batch_size: 6
  reading: {workers: 2, memory_limit: 0}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    draw = np.random.default_rng(0)
    for number in range(30):
        path = folder / "pets" / "cde"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 14, 3), dtype=np.uint8)).save(path)
    np.save(folder / "outliers.npy", draw.integers(0, 256, (17, 12, 12, 3), dtype=np.uint8))
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def arguments(folder, output, *more):
    places = ["-c", folder / "config.yaml", "--data.root", folder, "--output", folder / output]
    return list(map(str, ["fit", *places, *more]))


def checkpoint(folder, output):
    return torch.load(folder / output / "last.ckpt", weights_only=True)


def differences(one, other, place=""):
    """Return where two checkpoints differ, down to the last tensor, apart from what each was called
    with.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        keys = {*one, *other} - (
            {"config", "hyper_parameters", "callbacks", "sizes"} if not place else set()
        )
        return [
            found
            for key in keys
            for found in differences(one.get(key), other.get(key), f"{place}/{key}")
        ]
    if (
        isinstance(one, (list, tuple))
        and isinstance(other, (list, tuple))
        and len(one) == len(other)
    ):
        pairs = enumerate(zip(one, other, strict=True))
        return [
            found for number, pair in pairs for found in differences(*pair, f"{place}/{number}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    return [] if one == other else [f"{place}: {one}, {other}"]


def logged(folder, output):
    """Return the rows of `metrics.csv`, without the time."""
    with (folder / output / "metrics.csv").open() as file:
        return [
            {key: value for key, value in row.items() if "second" not in key}
            for row in csv.DictReader(file)
        ]


def test_killed_and_resumed_equals_never_stopped(folder):
    assert train(arguments(folder, "whole")) == 0
    inline = ["--data.reading.workers", "0", "--data.reading.memory_limit", "1000000"]
    assert train(arguments(folder, "inline", *inline)) == 0

    last = folder / "killed" / "last.ckpt"
    command = [sys.executable, str(ROOT / "train.py"), *arguments(folder, "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, text=True,
                               start_new_session=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not last.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
    finally:
        os.killpg(
            process.pid, signal.SIGKILL
        )  # its loader workers too, which would keep stderr open
        _, error = process.communicate(timeout=30)
    assert last.exists(), error
    assert 0 < checkpoint(folder, "killed")["global_step"] < STEPS
    assert train(arguments(folder, "killed", "--ckpt_path", "last")) == 0

    whole, inline, killed = (checkpoint(folder, output) for output in ("whole", "inline", "killed"))
    assert whole["global_step"] == STEPS
    assert differences(whole, inline) == []
    assert differences(whole, killed) == []
    assert logged(folder, "whole") == logged(folder, "killed") == logged(folder, "inline")
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops"} <= set(whole)


def test_a_group_told_to_end_writes_a_checkpoint_first(folder):
    """As torchrun, SLURM and a container's end do: the loader workers get the signal, too."""
    last = folder / "told" / "last.ckpt"
    command = [sys.executable, str(ROOT / "train.py"), *arguments(folder, "told")]
    command += ["--trainer.max_epochs", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True,
                               start_new_session=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not last.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        output, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, error
    assert "stopped by SIGTERM after step" in output + error
    assert "Traceback" not in error


def test_excluded_images_are_as_if_they_had_never_been(folder):
    """What `data overlap` finds and a config leaves out: the run is that on a file without those
    images.
    """
    outliers = np.load(folder / "outliers.npy")
    np.savez(folder / "test.npz", images=outliers[[11, 4]], labels=[0, 1])
    found = ["overlap", "outliers", "test", "--root", folder, "--exclude", folder / "leave.txt"]
    assert main(["data", *map(str, found)]) == 0
    np.save(folder / "without.npy", np.delete(outliers, [4, 11], 0))
    spec = "{source: outliers.npy, exclude: leave.txt}"
    short = ("--trainer.max_epochs", "2", "--data.outliers")
    assert train(arguments(folder, "excluded", *short, spec)) == 0
    assert train(arguments(folder, "without", *short, "without.npy")) == 0
    assert train(arguments(folder, "all", *short, "outliers.npy")) == 0
    excluded, without, everything = (
        checkpoint(folder, output) for output in ("excluded", "without", "all")
    )
    assert differences(excluded, without) == []
    assert [place for place in differences(excluded, everything) if place.startswith("/state_dict")]
