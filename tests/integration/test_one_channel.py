"""Grey images through train and evaluate: a small network of one channel, and our own."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from robust_ood import cli

MODULE = """
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2, padding=1)
        self.fc = nn.Linear(4 * 4 * 4, 3)

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))
"""
OURS = [
    "--net=robust_ood.models.WideResNet",
    "--net.depth=10",
    "--net.width=1",
    "--net.num_classes=3",
    "--net.mean=[0.4]",
    "--net.std=[0.3]",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    draws = np.random.default_rng(0)
    for name in ("train", "test", "outliers", "far"):
        labels = np.arange(24) % 3
        noise = draws.integers(0, 80, (24, 8, 8))
        images = (noise + 80 * labels[:, None, None]).astype(np.uint8)  # (N, H, W)
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    (folder / "users_grey.py").write_text(MODULE)
    (folder / "data.yaml").write_text(
        f"""\
data:
  root: {folder}
  train: train.npz
  validation: test.npz
  test: test.npz
  outliers: outliers.npz
  far: [far.npz, {{source: noise/blobs, count: 16}}, {{source: photographs/test, count: 8}}]
  channels: 1
  size: 8
  num_classes: 3
  batch_size: 8
  outlier_batch_size: 8
"""
    )
    return folder


def train(root, net, output, *more):
    method = str(Path(__file__).parents[2] / "configs" / "methods" / "aloe.yaml")
    options = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    options += ["--trainer.enable_progress_bar=false", f"--output={output}"]
    return cli.train(["fit", "-c", str(root / "data.yaml"), "-c", method, *net, *options, *more])


@pytest.mark.parametrize("net", [["--net=users_grey.Small"], OURS], ids=["theirs", "ours"])
def test_grey_images_are_trained_on_and_evaluated(root, tmp_path, monkeypatch, capsys, net):
    monkeypatch.setattr(sys, "path", [*sys.path, str(root)])
    importlib.invalidate_caches()
    code = train(root, net, tmp_path / "run", "--experiment=grey")
    assert code == 0, capsys.readouterr().err
    code = cli.evaluate(
        [
            *("-c", str(root / "data.yaml")),
            *(net if "users_grey" in net[0] else ()),
            f"--checkpoint={tmp_path / 'run' / 'last.ckpt'}",
            f"--output={tmp_path / 'results'}",
            "--detectors=[msp, mahalanobis]",
            "--attacks=[{name: pgd, radius: 8/255, steps: 2}]",
            "--limit=12",
            "--intervals=0",
            "--tensorboard=true",
        ]
    )
    assert code == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert {row["detector"] for row in rows} == {"msp", "mahalanobis"}
    assert all(0 <= row["auroc"] <= 1 for row in rows)
    assert (tmp_path / "results" / "report.html").exists()


@pytest.mark.parametrize(
    ("net", "option", "said"),
    [
        (["--net=users_grey.Small"], "--data.channels=3", "set data.channels: 1"),
        (OURS[:4], "--data.channels=1", "set data.channels: 3"),
    ],
    ids=["grey network", "network of colours"],
)
def test_a_network_of_other_channels_is_one_line(
    root, tmp_path, monkeypatch, capsys, net, option, said
):
    monkeypatch.setattr(sys, "path", [*sys.path, str(root)])
    importlib.invalidate_caches()
    assert train(root, net, tmp_path / "run", option) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: net: ")
    assert said in last
