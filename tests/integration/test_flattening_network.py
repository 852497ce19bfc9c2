"""A network that flattens with `view`, one that works in place, and one without a linear head,
through train and evaluate.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from robust_ood import cli

MODULE = """
from torch import nn


class Flattening(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 2, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, 2, padding=1)
        self.fc = nn.Linear(8 * 4 * 4, 4)

    def forward(self, x):
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc(x.view(x.size(0), -1))


class InPlace(Flattening):
    def forward(self, x):
        x.sub_(0.5).div_(0.25)
        x = self.conv2(self.conv1(x).relu_()).relu_()
        return self.fc(x.view(x.size(0), -1))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, x):
        return 9 * self.conv(x).mean((2, 3))
"""


@pytest.mark.parametrize("name", ["Flattening", "InPlace", "Bare"])
def test_it_is_trained_and_evaluated_under_attack(
    name, experiment, grid, tmp_path, monkeypatch, capsys
):
    (tmp_path / "users_view.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    run = tmp_path / "run"
    net = ["--net", f"users_view.{name}"]
    fit = ["fit", "-c", str(experiment), *net, "--output", str(run)]
    assert cli.train(fit) == 0, capsys.readouterr().err
    output = tmp_path / "evaluation"
    given = ["-c", grid, *net, "--checkpoint", run / "last.ckpt", "--output", output]
    quick = ["--intervals", "0", "--figures", "false", "--report", "false"]
    assert cli.evaluate([str(part) for part in [*given, *quick]]) == 0, capsys.readouterr().err
    results = json.loads(Path(output / "results.json").read_text())
    attacked = [row for row in results["rows"] if str(row["attack"]).startswith("pgd")]
    assert attacked
    assert all(0 <= row["auroc"] <= 1 for row in results["rows"])
