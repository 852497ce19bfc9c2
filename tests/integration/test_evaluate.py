"""`evaluate.py`: a trained checkpoint against several OOD arrays, and results by the published
schema.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robust_ood import cli
from robust_ood.attacks import lower_score, raise_score
from robust_ood.attacks.registry import build_all
from robust_ood.cli import evaluate_command
from robust_ood.detectors import MSP
from robust_ood.evaluation import Results
from robust_ood.metrics import ood_metrics
from robust_ood.models import load_network

ROOT = Path(__file__).parents[2]
DETECTORS = ["msp", "odin", "pro-msp"]
RATES = (
    "auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_ood_positive", "detection_error", "tpr_deployed", "fpr_deployed",
)  # fmt: skip
TEXTS = ("model", "detector", "attack", "attacked", "norm", "id", "ood", "group")
COUNTS = ("steps", "restarts", "n_id", "n_ood")
BOUNDS = ("lower", "fpr95_upper", "detection_error_upper", "bound", "sigma", "draws", "alpha")
ROW = {*TEXTS, "radius", *COUNTS, *RATES, "seconds", *BOUNDS}
ACCURACY = {
    "model",
    "id",
    "attack",
    "norm",
    "radius",
    "steps",
    "restarts",
    "n",
    "accuracy",
    "seconds",
}


def check_row(row: dict[str, Any]) -> None:
    """Check every field of a row: its type, its range, and what it implies for others."""
    assert set(row) == ROW | {"threshold", "threshold_set"}
    assert isinstance(row["threshold"], float)
    assert row["threshold_set"]
    for name in TEXTS:
        assert isinstance(row[name], str)
        assert row[name]
    for name in COUNTS:
        assert type(row[name]) is int
        assert row[name] >= 0
    for name in (*RATES, "radius", "seconds"):
        assert isinstance(row[name], float)
        assert math.isfinite(row[name])
    for name in RATES:
        assert 0 <= row[name] <= 1
    assert row["detection_error"] <= 0.5
    assert row["seconds"] >= 0
    assert row["n_id"] > 0
    assert row["n_ood"] > 0
    assert row["attacked"] in ("none", "in", "out", "both")
    assert row["group"] in ("near", "far")
    clean = row["attacked"] == "none"
    assert (row["attack"] == "none") == (row["norm"] == "none") == clean
    assert (row["steps"] == 0) == (row["restarts"] == 0) == (row["radius"] == 0) == clean


@pytest.fixture(scope="module")
def evaluated(grid, trained_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "tiny"
    arguments = [
        "-c",
        str(grid),
        "--checkpoint",
        str(trained_run / "last.ckpt"),
        "--output",
        str(folder),
    ]
    assert (
        cli.evaluate(
            [
                *arguments,
                "--detectors",
                f"[{','.join(DETECTORS)}]",
                "--name",
                "aloe",
                "--sanity",
                "false",
            ]
        )
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def content(evaluated) -> dict[str, Any]:
    return json.loads((evaluated / "results.json").read_text())


@pytest.fixture(scope="module")
def rows(content) -> list[dict[str, Any]]:
    return content["rows"]


def test_the_file_as_a_whole(content):
    assert set(content) >= {"schema", "environment", "rows", "classification", "warnings"}
    assert content["schema"] == 2
    assert content["environment"]["versions"]["torch"]
    assert all(isinstance(warning, str) for warning in content["warnings"])


def test_every_row_follows_the_schema(rows):
    for row in rows:
        check_row(row)


def test_there_is_a_row_for_each_combination_and_each_mean(rows):
    sets = [("near", "near"), ("near", "near"), ("far", "far"), ("stripes", "far"), ("far", "far")]
    found = sorted((r["detector"], r["attacked"], r["ood"], r["group"]) for r in rows)
    wanted = [
        (d, attacked, *s)
        for d in DETECTORS
        for attacked in ("none", "in", "out", "both")
        for s in sets
    ]
    assert found == sorted(wanted)
    assert {(row["model"], row["id"], row["n_id"]) for row in rows} == {("aloe", "test", 24)}
    assert {(r["norm"], r["steps"], r["restarts"]) for r in rows if r["attacked"] != "none"} == {
        ("Linf", 2, 1)
    }
    assert {r["radius"] for r in rows if r["attacked"] != "none"} == {8 / 255}


def test_means_are_means(rows):
    for detector in DETECTORS:
        for attacked in ("none", "both"):
            own = [
                r
                for r in rows
                if (r["detector"], r["attacked"], r["group"]) == (detector, attacked, "far")
            ]
            (mean,) = [r for r in own if r["n_ood"] == 40]
            for rate in RATES:
                parts = [r[rate] for r in own if r["n_ood"] == 20]
                assert mean[rate] == pytest.approx(sum(parts) / 2)


def test_no_attack_helps_the_detector(rows):
    """Scores of attacked inliers only fall and those of outliers only rise, so the AUROC falls with
    each side.
    """
    for detector in DETECTORS:
        for ood in ("far", "stripes"):
            own = {
                r["attacked"]: r
                for r in rows
                if (r["detector"], r["ood"], r["n_ood"]) == (detector, ood, 20)
            }
            assert own["both"]["auroc"] <= own["in"]["auroc"] <= own["none"]["auroc"]
            assert own["both"]["auroc"] <= own["out"]["auroc"] <= own["none"]["auroc"]
            assert own["in"]["tpr_deployed"] <= own["none"]["tpr_deployed"]
            assert own["out"]["fpr_deployed"] >= own["none"]["fpr_deployed"]


def test_the_numbers_are_those_of_the_python_functions(rows, arrays, trained_run):
    net = load_network(trained_run / "last.ckpt")
    inliers, outliers = (
        torch.from_numpy(np.load(arrays / f"{name}.npz")["images"]).permute(0, 3, 1, 2).float()
        / 255
        for name in ("test", "far")
    )
    msp = MSP(net)
    (attack,) = build_all([{"name": "pgd", "radius": "8/255", "steps": 2}]).values()
    with torch.no_grad():
        clean = msp(inliers)
        lost, hidden = (
            msp(lower_score(msp, inliers, attack)),
            msp(raise_score(msp, outliers, attack)),
        )
    wanted = ood_metrics(lost, hidden, clean)
    (row,) = [
        r
        for r in rows
        if (r["detector"], r["ood"], r["attacked"], r["n_ood"]) == ("msp", "far", "both", 20)
    ]
    assert {name: row[name] for name in RATES} == pytest.approx(
        {name: wanted[name] for name in RATES}, abs=1e-9
    )


def test_accuracies(content, arrays, trained_run):
    table = {row["attack"]: row for row in content["classification"]}
    assert len(table) == len(content["classification"]) == 2
    for row in table.values():
        assert set(row) == ACCURACY
        assert row["n"] == 24
        assert 0 <= row["accuracy"] <= 1
    attacked = next(row for name, row in table.items() if name != "none")
    assert attacked["accuracy"] <= table["none"]["accuracy"]
    test = np.load(arrays / "test.npz")
    with torch.no_grad():
        images = torch.from_numpy(test["images"]).permute(0, 3, 1, 2).float() / 255
        right = load_network(trained_run / "last.ckpt")(images).argmax(1).numpy() == test["labels"]
    assert table["none"]["accuracy"] == pytest.approx(right.mean())


def test_csv_holds_the_same_rows(evaluated, rows):
    with (evaluated / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    written = []
    for row in rows:
        written.append({name: "" if value is None else str(value) for name, value in row.items()})
    assert table == written


def test_results_read_back(evaluated, content):
    assert json.loads(json.dumps(Results.read(evaluated).as_dict())) == content


def test_the_same_evaluation_gives_the_same_numbers_in_other_batches(
    grid, trained_run, tmp_path, rows
):
    arguments = [
        "-c",
        str(grid),
        "--checkpoint",
        str(trained_run / "last.ckpt"),
        "--output",
        str(tmp_path),
    ]
    assert cli.evaluate([*arguments, "--data.evaluation_batch_size", "7", "--sanity", "false"]) == 0
    again = json.loads((tmp_path / "results.json").read_text())["rows"]
    for row, before in zip(again, [r for r in rows if r["detector"] == "msp"], strict=True):
        for name in RATES:
            assert row[name] == pytest.approx(before[name], abs=0.01)


def test_limit_uses_the_first_images(grid, trained_run, tmp_path):
    arguments = [
        "-c",
        str(grid),
        "--checkpoint",
        str(trained_run / "last.ckpt"),
        "--output",
        str(tmp_path),
    ]
    assert cli.evaluate([*arguments, "--limit", "5", "--attacks", "[]"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(row["n_id"], row["n_ood"]) for row in rows} == {(5, 5), (5, 10)}
    assert {row["attacked"] for row in rows} == {"none"}


def test_checks_warn_in_the_file_and_below_the_table(capsys, grid, trained_run, tmp_path):
    """An attack of one tiny step is far weaker than what the checks try."""
    arguments = [
        "-c",
        str(grid),
        "--checkpoint",
        str(trained_run / "last.ckpt"),
        "--output",
        str(tmp_path),
    ]
    feeble = "[{name: pgd, radius: 64/255, steps: 1, step_size: 0.001, random_start: false}]"
    assert cli.evaluate([*arguments, "--attacks", feeble]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["environment"]["sanity"] is content["environment"]["checks"] is True
    assert any("reported attack PGD" in warning for warning in content["warnings"])
    assert "warning: tiny, msp:" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "config", "expected"),
    [
        ([], "checks:\n", True),
        ([], "sanity:\n", True),
        (["--sanity", "false"], "", False),
        (["--sanity", "false"], "checks: true\n", False),
    ],
)
def test_whether_to_look_for_failed_attacks(tmp_path, options, config, expected):
    path = tmp_path / "more.yaml"
    path.write_text(f"limit: 3\n{config}")
    request = evaluate_command.parse([*options, "-c", str(path), "--output", str(tmp_path / "out")])
    assert request.config.sanity is expected
    assert request.settings["sanity"] is expected
    assert "checks" not in request.settings


@pytest.mark.parametrize("written", ["option", "config"])
def test_checks_is_the_old_name_of_sanity_and_warns(tmp_path, written):
    path = tmp_path / "more.yaml"
    path.write_text("checks: false\n" if written == "config" else "limit: 3\n")
    options = ["--checks", "false"] if written == "option" else []
    command = [*options, "-c", str(path), "--output", str(tmp_path / "out")]
    with pytest.warns(DeprecationWarning, match=r"checks.* use --sanity \(config: sanity\)"):
        request = evaluate_command.parse(command)
    assert request.config.sanity is False


def test_weights_of_others_with_a_network_from_the_config(grid, trained_run, tmp_path):
    state = torch.load(trained_run / "last.ckpt", weights_only=True)["state_dict"]
    torch.save(
        {"model": {key.replace("net.", "module."): v for key, v in state.items()}},
        tmp_path / "theirs.pt",
    )
    net = [
        "--net",
        "robust_ood.models.WideResNet",
        "--net.depth",
        "10",
        "--net.width",
        "1",
        "--net.num_classes",
        "4",
    ]
    arguments = [
        "-c",
        str(grid),
        "--checkpoint",
        str(tmp_path / "theirs.pt"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert cli.evaluate([*arguments, *net, "--attacks", "[]"]) == 0
    assert (tmp_path / "out" / "results.csv").exists()


def test_the_script_prints_a_table_and_nothing_else(grid, trained_run, tmp_path):
    command = [
        sys.executable,
        ROOT / "evaluate.py",
        "-c",
        grid,
        "--checkpoint",
        trained_run / "last.ckpt",
    ]
    done = subprocess.run(
        [*command, "--output", "out", "--sanity", "false", "--table", "full"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("msp", "stripes", "clean", "inliers", "both", "wrote out/results.json"):
        assert words in done.stdout
    assert "mean of" not in done.stdout  # of single sets
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_attacked_images_are_saved_read_again_and_carried_over(capsys, grid, trained_run, tmp_path):
    shared = ["-c", str(grid), "--checkpoint", str(trained_run / "last.ckpt"), "--sanity", "false"]
    shared += ["--limit", "6", "--name", "tiny"]
    first = tmp_path / "first"
    options = [
        "--detectors",
        "[msp, energy]",
        "--save_attacked",
        "npz",
        "--transfer",
        "tiny/energy",
    ]
    assert cli.evaluate([*shared, "--output", str(first), *options]) == 0
    assert "sets of attacked images" in capsys.readouterr().out
    before = Results.read(first)
    carried = [row for row in before.rows if row.attack == "pgd-8/255 from tiny/energy"]
    assert {row.detector for row in carried} == {"msp"}
    (folder,) = (first / "attacked" / "tiny" / "energy").iterdir()
    near = [str(path) for path in sorted(folder.glob("*.npz"))]
    inliers = {row.id for row in before.rows}
    (test,) = [path for path in near if Path(path).stem in inliers]
    near.remove(test)
    second = tmp_path / "second"
    sets = ["--data.test", test, "--data.near", str(near), "--data.far", "[]", "--attacks", "[]"]
    options = ["--detectors", "[msp, energy]", *sets]
    assert cli.evaluate([*shared, "--output", str(second), *options]) == 0
    after = {(row.detector, row.ood): row.auroc for row in Results.read(second).rows}
    compared = 0
    for row in before.rows:
        is_direct = row.detector == "energy" and row.attack == "pgd-8/255"
        if row.attacked == "both" and (is_direct or row in carried) and row.ood == "stripes":
            assert after[row.detector, row.ood] == row.auroc
            compared += 1
    assert compared == 2  # other sets are called as their groups
