"""`robust-ood report`, and the report that an evaluation ends with."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from robust_ood import cli

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
KINDS = ["shift", "curves", "landscape", "strips", "errors"]


@pytest.fixture(scope="module")
def evaluated(grid, trained_run, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "tiny"
    command = [
        "-c",
        str(grid),
        "--checkpoint",
        str(trained_run / "last.ckpt"),
        "--output",
        str(output),
    ]
    options = [
        "--sanity",
        "false",
        "--limit",
        "8",
        "--figures",
        "true",
        "--report",
        "true",
        "--tensorboard",
        "true",
    ]
    assert cli.evaluate([*command, *options]) == 0
    return output


def test_an_evaluation_ends_with_a_report(evaluated):
    page = (evaluated / "report.html").read_text()
    for name in (
        "auroc-by-radius-linf",
        "scores-msp",
        "shifts-msp",
        "landscape-tiny-msp",
        "images-tiny-msp",
    ):
        assert f'id="{name}"' in page
        assert (evaluated / "report_files" / f"{name}.png").is_file()
    assert len(list((evaluated / "figures").glob("*.npz"))) == len(KINDS)
    boards = {
        path.parent.name for path in (evaluated / "report_files" / "tensorboard").rglob("events.*")
    }
    assert boards == {"tiny", "report"}
    rows = json.loads((evaluated / "results.json").read_text())["rows"]
    assert all(f'data-value="{row["auroc"]}"' in page for row in rows)


def test_a_second_evaluation_draws_no_picture_again(evaluated, grid, trained_run, tmp_path):
    folder = Path(shutil.copytree(evaluated, tmp_path / "tiny"))
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "figures").iterdir()}
    for path in stamps:
        os.utime(path, ns=(1, 1))
    command = [
        "-c",
        str(grid),
        "--checkpoint",
        str(trained_run / "last.ckpt"),
        "--output",
        str(folder),
    ]
    assert (
        cli.evaluate(
            [*command, "--sanity", "false", "--limit", "8", "--figures", "[shift, curves]"]
        )
        == 0
    )
    assert {path.stat().st_mtime_ns for path in (folder / "figures").iterdir()} == {1}


def test_the_report_command_needs_neither_network_nor_images(capsys, evaluated, tmp_path):
    moved = Path(shutil.copytree(evaluated, tmp_path / "moved"))
    (moved / "report.html").unlink()
    assert cli.main(["report", str(moved)]) == 0
    assert capsys.readouterr().out == f"wrote {moved / 'report.html'}\n"
    assert (moved / "report.html").read_bytes() == (evaluated / "report.html").read_bytes()


def test_several_folders_make_one_page(evaluated, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(evaluated, tmp_path / name)
    page = tmp_path / "both.html"
    assert (
        cli.main(
            ["report", str(tmp_path / "first"), str(tmp_path / "second"), "--output", str(page)]
        )
        == 0
    )
    assert "tiny (second), far OOD" in page.read_text()
    assert (tmp_path / "both_files" / "scores-msp.csv").read_text().count(
        "tiny (second)"
    ) == 2 * 3 * 40


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{", "missing or damaged"),
        ('{"schema": 3}', "is not of schema 1 to 2"),
        ("[]", "is not of schema 1 to 2"),
    ],
)
def test_folders_without_results_end_with_one_line(capsys, tmp_path, content, words):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert cli.main(["report", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: results: ")
    assert words in line
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["--output", "x.html"], ["{}", "--output", "x.pdf"], ["{}", "--format", "x"]]
)
def test_bad_options_end_with_one_line(capsys, evaluated, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *(part.format(evaluated) for part in arguments)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_figures_are_refused_before_any_work(capsys, grid, trained_run, tmp_path):
    command = [
        "-c",
        str(grid),
        "--checkpoint",
        str(trained_run / "last.ckpt"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert cli.evaluate([*command, "--figures", "[shift, pie]"]) == 2
    assert "figures: unknown name 'pie'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_figure_that_no_detector_has_is_refused_before_any_work(
    capsys, grid, trained_run, tmp_path
):
    command = ["-c", str(grid), "--checkpoint", str(trained_run / "last.ckpt")]
    command += ["--output", str(tmp_path / "out"), "--figures", "[transfer]"]
    assert cli.evaluate(command) == 2
    assert "figures.transfer: none of the detectors is a mean" in capsys.readouterr().err


def test_tensorboard_without_a_report_is_refused_before_any_work(
    capsys, grid, trained_run, tmp_path
):
    command = [
        "-c",
        str(grid),
        "--checkpoint",
        str(trained_run / "last.ckpt"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert cli.evaluate([*command, "--report", "false", "--tensorboard", "true"]) == 2
    assert "tensorboard: true shows what a report has" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_reports_without_the_extra_are_refused_before_any_work(
    capsys, monkeypatch, grid, trained_run, tmp_path
):
    monkeypatch.setattr("robust_ood.reporting.find_spec", lambda module: None)
    command = [
        "-c",
        str(grid),
        "--checkpoint",
        str(trained_run / "last.ckpt"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert cli.evaluate([*command, "--report", "true"]) == 2
    assert "pip install 'robust-ood[report]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
