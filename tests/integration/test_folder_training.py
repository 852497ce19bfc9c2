"""Training on a folder of images with outliers in a `.npy`, read by two workers, killed and resumed: the same run."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_ood.cli import train

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
  workers: 2
  memory_limit: 0
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


def weights(folder, output):
    checkpoint = torch.load(folder / output / "last.ckpt", weights_only=True)
    return checkpoint["global_step"], checkpoint["state_dict"]


def test_killed_and_resumed_equals_never_stopped(folder):
    assert train(arguments(folder, "whole")) == 0
    assert train(arguments(folder, "inline", "--data.workers", "0", "--data.memory_limit", "1000000")) == 0

    last = folder / "killed" / "last.ckpt"
    command = [sys.executable, str(ROOT / "train.py"), *arguments(folder, "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        deadline = time.monotonic() + 300
        while not last.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate(timeout=30)
    assert last.exists(), error
    assert 0 < weights(folder, "killed")[0] < STEPS
    assert train(arguments(folder, "killed", "--ckpt_path", "last")) == 0

    (steps, whole), (inline_steps, inline), (killed_steps, killed) = (
        weights(folder, output) for output in ("whole", "inline", "killed")
    )
    assert steps == inline_steps == killed_steps == STEPS
    assert not [name for name, value in whole.items() if not torch.equal(value, inline[name])]
    assert not [name for name, value in whole.items() if not torch.equal(value, killed[name])]
