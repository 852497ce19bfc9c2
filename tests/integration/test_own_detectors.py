"""A user's own detectors, in a file of the working folder, through the real evaluate.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
