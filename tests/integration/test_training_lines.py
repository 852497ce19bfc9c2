"""What a training run says while it runs and when it ends early, in a log file and on a terminal."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback

from robust_ood import cli
from robust_ood.callbacks import EpochLines
from robust_ood.callbacks.progress import Bar, duration, progress_callbacks
from robust_ood.errors import UserError

LINES = ["--trainer.enable_progress_bar", "true"]
NUMBER = r"[\d.,e+-]+"
LINE = (
    rf"epoch (\d)/(\d+), step (\d+): loss {NUMBER}, accuracy [01]\.\d+, "
    rf"validation accuracy [01]\.\d+(, robust AUROC [01]\.\d+)?, {NUMBER} images/s, \d+:\d\d left"
)


def fit(experiment, folder, *options):
    return cli.train(["fit", "-c", str(experiment), "--output", str(folder), *options])


def test_a_log_file_has_one_line_an_epoch(capsys, experiment, tmp_path):
    robust = ["--robust_validation.detectors", "[msp]", "--robust_validation.limit", "8"]
    robust += ["--data.validation_ood", "[stripes]", "--data.allow_overlap", "true"]
    assert fit(experiment, tmp_path / "run", *LINES, *robust) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    matches = [re.fullmatch(LINE, line) for line in lines]
    assert all(matches), "\n".join(lines)
    assert [match.group(1, 2, 3) for match in matches] == [("1", "2", "4"), ("2", "2", "8")]
    assert all("robust AUROC" in line for line in lines)
    assert last == f"wrote {tmp_path / 'run' / 'last.ckpt'}"


STOPS = {
    "early stopping": (
        "trainer: {max_epochs: 9, callbacks: [{class_path: EarlyStopping, init_args: "
        "{monitor: val/accuracy, mode: max, patience: 1, min_delta: 1.0}}]}\n"
        "checkpoints: {monitor: val/loss, mode: min}\n",
        r"stopped early after 2 epochs \(step 8\): val/accuracy did not improve in the last 1 "
        r"records\. Best score: \d\.\d+",
    ),
    "max_time": (
        "trainer: {max_epochs: 1000, max_time: {seconds: 1}}\n",
        r"stopped early after \d+ epochs \(step \d+\): its time is over \(trainer\.max_time, "
        r"\d:\d\d\)",
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_run_says_why_it_stopped_early(name, capsys, experiment, tmp_path):
    text, expected = STOPS[name]
    config = tmp_path / "stop.yaml"
    config.write_text(text)
    assert fit(experiment, tmp_path / "run", "-c", str(config)) == 0
    out = capsys.readouterr().out
    assert re.search(f"^{expected}$", out, re.MULTILINE), out


def test_best_may_be_the_smallest_value(experiment, tmp_path):
    folder = tmp_path / "run"
    options = ["--checkpoints.monitor", "val/loss", "--checkpoints.mode", "min"]
    assert fit(experiment, folder, *options) == 0
    states = torch.load(folder / "best.ckpt", weights_only=True)["callbacks"]
    best = states["Checkpoints"]["best"]
    rows = (folder / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/loss")
    losses = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert best == pytest.approx(min(losses))
    assert len(losses) == 2


def test_the_bar_fits_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = {
        "train/loss": 0.4321, "train/accuracy": 0.912, "val/accuracy": 0.93,
        "val/robust_auroc": 0.812, "v_num": 0,
    }  # fmt: skip
    trainer = SimpleNamespace(progress_bar_metrics=shown, loggers=[])
    metrics = Bar().get_metrics(trainer, None)
    postfix = ", ".join(f"{name}={value:.3f}" for name, value in metrics.items())
    words = {
        "desc": "Epoch 119", "percentage": 100.0, "bar": "", "n_fmt": "3125",
        "total_fmt": "3125", "remaining": "1:00:33", "postfix": postfix,
    }  # fmt: skip
    assert len(Bar.BAR_FORMAT.format(**words)) <= 80


def test_a_terminal_gets_the_bar_and_a_user_keeps_their_own(monkeypatch):
    assert [type(each) for each in progress_callbacks([], None)] == [EpochLines]
    assert progress_callbacks([], False) == []
    assert progress_callbacks([Callback(), Bar()], None) == []
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    assert [type(each) for each in progress_callbacks([], True)] == [Bar]


def test_times_are_read_at_a_glance():
    assert [duration(each) for each in (0.4, 59.6, 3599.4, 3600, 90061)] == [
        "0:00", "1:00", "59:59", "1:00:00", "25:01:01",
    ]  # fmt: skip
    with pytest.raises(UserError, match="minutes: 0"):
        EpochLines(0)


def test_a_run_resumed_within_an_epoch_counts_from_its_own_start(monkeypatch):
    # Lightning does not start the epoch again: it goes on within it.
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    lines = EpochLines()
    lines.on_train_start(SimpleNamespace(global_step=4), None)
    lines._images = 50
    monkeypatch.setattr("time.monotonic", lambda: 1010.0)
    trainer = SimpleNamespace(
        callback_metrics={}, global_step=4, max_epochs=2, current_epoch=0,
        estimated_stepping_batches=-1,
    )  # fmt: skip
    assert "5 images/s" in lines.line(trainer)
