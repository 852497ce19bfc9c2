"""benchmarks/compare_results.py finds every difference, and none where only times differ."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from robust_ood.evaluation import Accuracy, FolderStore, Results, Row
from robust_ood.evaluation.results import CellFiles, Interval
from robust_ood.evaluation.store import Cell

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BUDGET = {"norm": "Linf", "radius": 0.1, "steps": 3, "restarts": 1}
RATES = dict.fromkeys(
    ("auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_ood_positive", "detection_error",
     "tpr_deployed", "fpr_deployed"), 0.5)  # fmt: skip
SUBJECT = {"model": "net", "detector": "msp", "attack": "pgd"}


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return import_module("compare_results").main


def write(folder, *, auroc=0.5, seconds=1.0, accuracy=0.9, low=0.4, score=0.25, key="a", **more):
    row = Row(**SUBJECT, attacked="both", **BUDGET, id="in", ood="far", group="far", n_id=2,
              n_ood=2, **{**RATES, "auroc": auroc}, seconds=seconds)  # fmt: skip
    right = Accuracy(model="net", id="in", attack="pgd", **BUDGET, n=2, accuracy=accuracy,
                     seconds=seconds)  # fmt: skip
    interval = Interval(**SUBJECT, attacked="both", id="in", ood="far", group="far", level=0.95,
                        samples=10, auroc=(low, 0.6), fpr95=(0.1, 0.2))  # fmt: skip
    store = FolderStore(folder)
    with store.claim("work", wait=True):
        arrays = {"scores": np.array([score, 1], np.float32), "winners": np.array([1, 0], np.int16)}
        store.write(key, Cell(arrays, {"members": ["clean", "pgd"], "seconds": seconds}))
    cells = CellFiles(**SUBJECT, images="far", group="far", files=(store.path(key),))
    environment = {"date": str(seconds), "limit": 5}
    results = Results([row], [right], [], environment, [interval], cells=[cells])
    for name, value in more.items():
        setattr(results, name, value)
    results.write(folder)


def test_times_and_the_names_of_cells_do_not_count(compare, tmp_path, capsys):
    write(tmp_path / "a")
    write(tmp_path / "b", seconds=7.0, key="b")
    assert compare([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.startswith("equal: 1 rows, 1 accuracies, 1 intervals, 1 sets")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auroc": 0.5 + 1e-16 * 2}, "rows[0].auroc: 0.5 -> 0.5000000000000002"),
        ({"accuracy": 0.8}, "classification[0].accuracy: 0.9 -> 0.8"),
        ({"low": 0.3}, "intervals[0].auroc: (0.4, 0.6) -> (0.3, 0.6)"),
        ({"score": 0.25 + 3e-8}, "cells of net, msp, pgd, far, far: scores differ"),
        ({"warnings": ["loud"]}, "warnings: [] -> ['loud']"),
        ({"complete": False}, "complete: True -> False"),
        ({"environment": {"limit": 6}}, "environment.limit: 5 -> 6"),
        ({"rows": []}, "rows: 1 records -> 0"),
        ({"cells": []}, "cells of net, msp, pgd, far, far: in one of both folders only"),
    ],
)
def test_everything_else_counts(compare, tmp_path, capsys, change, said):
    write(tmp_path / "a")
    write(tmp_path / "b", **change)
    assert compare([str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().out.splitlines() == [said]


def test_folders_without_their_cells_are_compared_by_their_records(compare, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name)
        content = json.loads((tmp_path / name / "results.json").read_text())
        assert content["schema"] == 2
        for path in (tmp_path / name / "store" / "cells").iterdir():
            path.unlink()
    assert compare([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
