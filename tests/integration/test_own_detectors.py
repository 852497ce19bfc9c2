"""A user's own detectors, in a file of the working folder, through the real evaluate.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robust_ood import cli

ROOT = Path(__file__).parents[2]

OWN = """
from robust_ood.detectors import OutputsDetector, Wrapper


class Clipped(OutputsDetector):
    def __init__(self, net, threshold=1.0):
        super().__init__(net)
        self.threshold = threshold

    def score(self, out):
        return out.logits.amax(1).clamp(max=self.threshold)


class Scaled(Wrapper):
    def __init__(self, detector, factor=2.0):
        super().__init__(detector)
        self.factor = factor

    def forward(self, images):
        return self.factor * self.detector(images)
"""
DETECTORS = """
detectors:
  - {name: mine.Clipped, threshold: 3, label: short}
  - {class_path: mine.Clipped, init_args: {threshold: 3}, label: long}
  - {name: mine.Scaled, score: {name: mine.Clipped, threshold: 3}, factor: 5, label: wrapped}
  - {name: mean, scores: [{name: mine.Clipped, threshold: 3}], label: averaged}
"""


def evaluate(folder, grid, run, text):
    (folder / "mine.py").write_text(OWN)
    (folder / "detectors.yaml").write_text(text)
    command = [sys.executable, str(ROOT / "evaluate.py"), "-c", str(grid), "-c", "detectors.yaml"]
    command += ["--checkpoint", str(run / "last.ckpt"), "--output", "results"]
    command += ["--sanity", "false", "--device", "cpu"]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_users_detectors_are_named_by_import_path_everywhere(grid, trained_run, tmp_path):
    done = evaluate(tmp_path, grid, trained_run, DETECTORS)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    by_label = {}
    for row in rows:
        key = (row["attack"], row["attacked"], row["ood"], row["group"])
        by_label.setdefault(row["detector"], {})[key] = row["auroc"]
    assert set(by_label) == {"short", "long", "wrapped", "averaged"}
    # One score in four spellings: an increasing change of it orders images alike.
    assert by_label["short"] == by_label["long"]
    for label in ("wrapped", "averaged"):
        for key, auroc in by_label["short"].items():
            if key[1] == "none":
                assert by_label[label][key] == auroc


def test_a_misspelt_setting_of_a_users_detector_is_one_line(grid, trained_run, tmp_path):
    text = "detectors: [{name: mine.Clipped, treshold: 3}]\n"
    done = evaluate(tmp_path, grid, trained_run, text)
    assert done.returncode == 2
    assert "mine.Clipped.treshold" in done.stderr
    assert "'threshold'" in done.stderr
    assert "Traceback" not in done.stderr


ATTACK = """
import torch
from robust_ood.attacks import Candidate, Settings
from robust_ood.regions import Region


class Grey:
    keeps_clean = True

    def __init__(self, region: Region, shift: float = 0.5):
        self.region = region
        self.shift = shift

    def settings(self):
        return Settings(norm=self.region.name, radius=self.region.radius, steps=1, restarts=1)

    def on_score(self, detector, images, direction, indices):
        yield Candidate(self.region.project(torch.full_like(images, self.shift), images), "grey")

    def on_label(self, net, images, labels, indices):
        yield from self.on_score(None, images, 1, indices)
"""
FORMS = {
    "a name": "[mine.Clipped]\nATTACKS: [mine_attack.Grey]\n",
    "a class path": """
  - {class_path: mine.Clipped, init_args: {threshold: 3}}
ATTACKS:
  - {class_path: mine_attack.Grey, init_args: {radius: 8/255, shift: 0.25}}
""",
    "a name with settings": """
  - {name: mine.Clipped, threshold: 3}
ATTACKS:
  - {name: mine_attack.Grey, radius: 8/255, shift: 0.25}
""",
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("place", ["working folder", "PYTHONPATH"])
def test_own_detectors_and_attacks_in_every_form(name, place, experiment, tmp_path, monkeypatch):
    """As configs write them, of an evaluation and of robust validation in training."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "mine.py").write_text(OWN)
    (modules / "mine_attack.py").write_text(ATTACK)
    folder = modules if place == "working folder" else tmp_path
    if place == "PYTHONPATH":
        monkeypatch.syspath_prepend(modules)
    monkeypatch.chdir(folder)
    run = tmp_path / "run"
    text = "detectors: " + FORMS[name].replace("ATTACKS", "attacks")
    inner = text.replace("\n", "\n  ")
    (folder / "validation.yaml").write_text(
        f"robust_validation:\n  limit: 8\n  {inner}\n"
        "data: {validation_ood: [stripes], allow_overlap: true}\n"
    )
    (folder / "parts.yaml").write_text(text)
    data = yaml.safe_load(experiment.read_text())["data"]
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    path = list(sys.path)
    try:
        fit = ["fit", "-c", str(experiment), "-c", "validation.yaml", "--output", str(run)]
        assert cli.train([*fit, "--trainer.max_steps", "4"]) == 0
        evaluate = ["-c", "data.yaml", "-c", "parts.yaml", "--checkpoint", str(run / "last.ckpt")]
        evaluate += ["--output", "results", "--limit", "8", "--sanity", "false", "--report"]
        assert cli.evaluate([*evaluate, "false", "--figures", "false"]) == 0
    finally:
        sys.path[:] = path
        for module in ("mine", "mine_attack"):
            sys.modules.pop(module, None)
    assert "mine.Clipped" in (run / "metrics.csv").read_text().splitlines()[0]
    rows = json.loads((folder / "results" / "results.json").read_text())["rows"]
    assert {row["detector"] for row in rows} == {"mine.Clipped"}
    assert {row["attack"].partition("-")[0] for row in rows} == {"none", "mine_attack.Grey"}
