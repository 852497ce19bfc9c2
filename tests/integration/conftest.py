"""Tiny image arrays on disk, a run trained on them by the real command, and a way to call the
commands.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pytest

from robust_ood import cli

ROOT = Path(__file__).parents[2]


def draw_images(count: int, seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def draw_classes(count: int, seed: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Draw noisy images of four grey levels, with their class."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    noise = draws.normal(0, 12, (count, size, size, 3))
    return np.clip(labels[:, None, None, None] * 60 + 40 + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="session")
def outputs_of():
    """Wait for processes that work together and return their outputs: `outputs_of(processes,
    timeout)` in seconds.

    None outlives the wait; where one fails, the others, which would wait for it, end at once.
    """

    def finish(processes, timeout):
        with ThreadPoolExecutor(len(processes)) as pool:
            waiting = {
                pool.submit(process.communicate, timeout=timeout): process for process in processes
            }
            try:
                for done in as_completed(waiting):
                    if done.exception() or waiting[done].returncode != 0:
                        break
            finally:
                for process in processes:
                    process.kill()
        outputs = [done.result()[0] for done in waiting]
        assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(
            outputs
        )
        return outputs

    return finish


@pytest.fixture(scope="session")
def arrays(tmp_path_factory) -> Path:
    """A folder of array files: four classes of images, and three sets that are none of them."""
    folder = tmp_path_factory.mktemp("arrays")
    for part, count, seed in (("train", 64, 0), ("validation", 16, 1), ("test", 24, 2)):
        images, labels = draw_classes(count, seed)
        np.savez(folder / f"{part}.npz", images=images, labels=labels)
    np.savez(folder / "outliers.npz", images=draw_images(48, 3))
    np.savez(folder / "near.npz", images=draw_images(20, 4) // 2 + 64)
    np.savez(folder / "far.npz", images=draw_images(20, 5))
    np.save(folder / "stripes.npy", np.repeat(draw_images(20, 6)[:, :, :1], 16, axis=2))
    return folder


@pytest.fixture(scope="session")
def experiment(arrays, tmp_path_factory) -> Path:
    """A config of a small ALOE run on the arrays."""
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(
        f"""\
include: [{ROOT}/configs/models/wrn_10_1.yaml, {ROOT}/configs/methods/aloe.yaml]
experiment: tiny
trainer: {{accelerator: cpu, devices: 1, max_epochs: 2, enable_progress_bar: false, log_every_n_steps: 1}}
net: {{init_args: {{num_classes: 4}}}}
model: {{init_args: {{optimization: {{learning_rate: 0.05}}}}}}
data:
  root: {arrays}
  train: train.npz
  validation: validation.npz
  test: test.npz
  outliers: outliers.npz
  near: [near.npz]
  far: [far.npz, stripes]
  num_classes: 4
  batch_size: 16
  outlier_batch_size: 16
"""
    )
    return path


@pytest.fixture(scope="session")
def grid(experiment, tmp_path_factory) -> Path:
    """A config of a small evaluation on the arrays; the data of the experiment; it ends without a
    report.
    """
    text = experiment.read_text()
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    rest = "detectors: [msp]\nattacks: [{name: pgd, radius: 8/255, steps: 2}]\nfigures: false\nreport: false\n"
    path.write_text(text[text.index("data:") :] + rest)
    return path


@pytest.fixture(scope="session")
def trained_run(experiment, tmp_path_factory) -> Path:
    """The folder of a finished run. Only to be read; `shutil.copytree` it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli.train(["fit", "-c", str(experiment), "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def own_run(trained_run, tmp_path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(trained_run, tmp_path / "tiny"))
