"""`robust-ood search`: settings chosen on validation sets, read again by `evaluate.py`."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from robust_ood import cli
from robust_ood.cli import search_command
from robust_ood.models import WideResNet

NET = ["--net", "robust_ood.models.WideResNet"]
NET += ["--net.depth", "10", "--net.width", "1", "--net.num_classes", "10"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "weights.pt"
    torch.manual_seed(0)
    torch.save(WideResNet(depth=10, width=1, num_classes=10).state_dict(), path)
    return path


@pytest.fixture
def search(weights, tmp_path):
    def run(*arguments: str, config: str = "configs/data/digits.yaml") -> int:
        common = ["-c", config, "--checkpoint", str(weights), *NET, "--limit", "24"]
        common += ["--device", "cpu", "--output", str(tmp_path / "chosen")]
        return cli.main(["search", *common, *arguments])

    return run


def test_the_best_point_becomes_a_config_that_evaluate_reads(search, weights, tmp_path, capsys):
    detectors = (
        "[{name: react, score: maxlogit, ranges: {percentile: [70, 95]}}, "
        "{name: pro-gen, label: mine, steps: 1, ranges: {gamma: [0.1, 0.5], step_size: [0.001]}}]"
    )
    assert search("--detectors", detectors) == 0
    folder = tmp_path / "chosen"
    react, mine = yaml.safe_load((folder / "detectors.yaml").read_text())["detectors"]
    trials = json.loads((folder / "search.json").read_text())
    for chosen, searched in ((react, trials[0]), (mine, trials[1])):
        best = max(searched["trials"], key=lambda trial: trial["auroc"])
        assert len(searched["trials"]) == 2
        assert searched["best"] == best["settings"]
        assert best["settings"].items() <= chosen.items()
    assert react["score"] == "maxlogit"
    assert (mine["label"], mine["steps"]) == ("mine", 1)
    assert "best first" in capsys.readouterr().out
    code = cli.evaluate(
        [
            "-c",
            "configs/data/digits.yaml",
            "-c",
            str(folder / "detectors.yaml"),
            *NET,
            "--checkpoint",
            str(weights),
            "--limit",
            "8",
            "--attacks",
            "[]",
            "--report",
            "false",
            "--figures",
            "false",
            "--checks",
            "false",
            "--output",
            str(tmp_path / "results"),
        ]
    )
    assert code == 0
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert {row["detector"] for row in results["rows"]} == {"react", "mine"}


def test_the_papers_ranges_are_tried_where_none_are_given(search, tmp_path):
    assert search("--detectors", "[{name: odin, magnitude: 0.001}]", "--metric", "fpr95") == 0
    (searched,) = json.loads((tmp_path / "chosen" / "search.json").read_text())
    tried = [trial["settings"] for trial in searched["trials"]]
    assert tried == [{"temperature": value} for value in (1, 10, 100, 1000)]
    assert searched["fpr95"] == min(trial["fpr95"] for trial in searched["trials"])


def test_an_attack_decides_by_what_survives(search, tmp_path):
    ranges = "[{name: energy, ranges: {temperature: [0.5, 5]}}]"
    assert search("--detectors", ranges) == 0
    (clean,) = json.loads((tmp_path / "chosen" / "search.json").read_text())
    attack = "{name: pgd, radius: 0.1/255, steps: 3}"
    assert search("--detectors", ranges, "--attack", attack) == 0
    (attacked,) = json.loads((tmp_path / "chosen" / "search.json").read_text())
    for before, after in zip(clean["trials"], attacked["trials"], strict=True):
        assert after["auroc"] < before["auroc"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--detectors", "[msp]"], "detectors.msp.ranges: not given"),
        (["--detectors", "[{name: odin, ranges: {temperature: 3}}]"], "ranges.temperature: exp"),
        (["--detectors", "[odin, odin]"], "detectors: 'odin' is duplicated"),
        (["--detectors", "[odim]"], "detectors.odim.ranges: not given"),
        (["--detectors", "[]"], "detectors: none given"),
        (["--limit", "0"], "limit: expected a number of images >= 1, got 0"),
        (["--data.validation_ood", "[]"], "data.validation_ood: not given"),
        (["--attack", "{name: pdg}"], "did you mean 'pgd'"),
        (["--data.validation", "digits/test"], "id_validation: "),
    ],
)
def test_mistakes_are_named_before_anything_is_written(search, tmp_path, capsys, arguments, said):
    assert search(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "chosen").exists()


def test_a_stopped_search_goes_on_and_says_what_it_shows(search, tmp_path, capsys, monkeypatch):
    temperatures = ", ".join(f"{0.5 + index / 4}" for index in range(12))
    ranges = f"[{{name: energy, ranges: {{temperature: [{temperatures}]}}}}]"
    folder = tmp_path / "chosen"
    compute = search_command.clean_score
    calls = []

    def interrupting(detector, images, side):
        calls.append(side)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return compute(detector, images, side)

    with monkeypatch.context() as patched:
        patched.setattr(search_command, "clean_score", interrupting)
        assert search("--detectors", ranges) == 130
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("stopped: what is done is kept; the same command")
        done = len(list((folder / "store" / "cells").glob("[!.]*.npz")))
        assert done == 6
        assert search("--detectors", ranges) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"continued: {done} of {len(calls) - 1} batches were scored before" in said
    assert f"10 of 12 points shown; all are in {folder / 'search.json'}" in said
    (continued,) = json.loads((folder / "search.json").read_text())
    assert search("--detectors", ranges, "--output", str(tmp_path / "whole")) == 0
    assert (tmp_path / "whole" / "search.json").read_text() == (folder / "search.json").read_text()
    assert len(continued["trials"]) == 12
