"""Transforms by name in the real command: exact after a kill, for any number of workers."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from robust_ood import cli

AUGMENTATION = """\
data:
  augmentation:
    - {name: RandomResizedCrop, size: 16, scale: [0.5, 1.0]}
    - TrivialAugmentWide
    - {name: mixup, alpha: 0.4}
"""
STOP = """\
from pytorch_lightning import Callback
class Stop(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 6: raise SystemExit(9)
"""


@pytest.fixture
def stopping(tmp_path, monkeypatch):
    (tmp_path / "tests_stop_6.py").write_text(STOP)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("tests_stop_6", None)


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def test_a_killed_run_ends_with_the_same_bits_for_any_number_of_workers(
    experiment, stopping, tmp_path
):
    images = tmp_path / "images"
    for label in range(4):
        folder = images / str(label)
        folder.mkdir(parents=True)
        for place in range(16):
            color = (60 * label + place, 10 * place, 255 - 60 * label)
            Image.new("RGB", (16, 16), color).save(folder / f"{place}.png")
    config = tmp_path / "augment.yaml"
    config.write_text(AUGMENTATION + f"  train: {images}\n  size: 16\n")
    fit = ["fit", "-c", str(experiment), "-c", str(config)]
    fit += ["--data.reading.memory_limit", "0", "--checkpoints.every_n_steps", "5"]
    whole = tmp_path / "whole"
    assert cli.train([*fit, "--output", str(whole)]) == 0
    resumed = tmp_path / "resumed"
    stop = ["--trainer.callbacks", "[{class_path: tests_stop_6.Stop}]"]
    assert cli.train([*fit, *stop, "--output", str(resumed)]) == 9
    again = ["--output", str(resumed), "--ckpt_path", "last", "--resume_changed", "true"]
    assert cli.train([*fit, *again, "--data.reading.workers", "2"]) == 0
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
