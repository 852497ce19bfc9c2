"""`make quickstart` in its short form: a few steps and images, and whether all of it runs."""

from __future__ import annotations

import json
from pathlib import Path

from robust_ood import quickstart

ROOT = Path(__file__).parents[2]


def test_quickstart_trains_evaluates_and_writes_both_models(tmp_path, monkeypatch, capfd):
    """`tests/packaging/check_wheel.py` runs it as a program of its own."""
    monkeypatch.chdir(ROOT)
    code = quickstart.main(["--short", "--output", str(tmp_path / "quickstart")])
    said = capfd.readouterr()
    assert (code, said.err) == (0, "")
    found = json.loads((tmp_path / "quickstart" / "results.json").read_text())
    rows = found["rows"]
    assert {row["model"] for row in rows} == {"OE", "ALOE"}
    assert {row["detector"] for row in rows} == {"msp", "odin", "pro-msp"}
    assert {row["attacked"] for row in rows} == {"none", "in", "out", "both"}
    attacked = [row for row in rows if row["attacked"] != "none"]
    assert {row["radius"] for row in attacked} == {16 / 255}
    assert all(row["steps"] >= 20 for row in attacked)
    assert all(row["restarts"] >= 2 for row in attacked)
    # The same attack on every model.
    settings = {model: {(r["attack"], r["norm"], r["radius"], r["steps"], r["restarts"]) for r in rows
                        if r["model"] == model} for model in ("OE", "ALOE")}  # fmt: skip
    assert settings["OE"] == settings["ALOE"]
    assert (tmp_path / "quickstart" / "results.csv").exists()
    page = (tmp_path / "quickstart" / "report.html").read_text()
    assert page.count("<svg") >= 5
    assert "OE, far OOD" in page
    for words in (
        "python train.py fit",
        "python evaluate.py",
        "OE with MSP on photograph patches",
        "wrote",
    ):
        assert words in said.out
