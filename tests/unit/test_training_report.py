"""The report of a training run: read from its folder, drawn, and refused where it is damaged."""

from __future__ import annotations

import math

import pytest
from torch.utils.tensorboard import SummaryWriter

from robust_ood import cli, reporting
from robust_ood.callbacks import MetricsFile
from robust_ood.errors import UserError
from robust_ood.reporting.figures.training import group_of
from robust_ood.reporting.training_page import table
from robust_ood.reporting.training_run import read_run


@pytest.fixture
def run(tmp_path):
    """A run that was killed once, overfitted at its end, and has names that HTML must escape."""
    folder = tmp_path / "run"
    folder.mkdir()
    metrics = MetricsFile(folder)
    for step in (9, 19, 29):
        epoch = step // 10
        rate = 0.1 - step / 1000
        metrics.log_metrics(
            {"epoch": epoch, "train/loss": 2 - step / 30, "train/learning_rate": rate}, step
        )
        overfitted = float(step == 29)
        values = {
            "epoch": epoch, "val/accuracy": 0.5 + step / 100, "val/loss": 1.0,
            "val/robust_auroc": 0.6 - step / 100, "val/<ood>/msp/none/auroc": 0.9,
            "val/pgd_accuracy": 0.4 - 0.35 * overfitted, "val/fgsm_accuracy": 0.5,
            "val/catastrophic_overfitting": overfitted,
        }  # fmt: skip
        metrics.log_metrics(values, step)
    for start in (0, 1):
        with SummaryWriter(folder, filename_suffix=f".{start}") as writer:
            for step in (9, 19):
                at = 1e9 + 1000 * start + 6 * step
                writer.add_scalar("images_per_second", 100.0 + start, 10 * start + step, at)
    (folder / "config.yaml").write_text("experiment: <b>run</b>\n")
    (folder / "last.ckpt").write_bytes(b"")
    return folder


def test_a_run_is_read(run):
    found = read_run(run)
    assert found.epochs == 3
    assert found.seconds == pytest.approx(120)  # the pause between the two starts is left out
    assert found.curves["images_per_second"] == [(9, 100), (19, 101), (29, 101)]
    assert found.alarms() == [29]
    assert found.curves["val/robust_auroc"] == [(step, 0.6 - step / 100) for step in (9, 19, 29)]
    rows = {row[0]: row[1:] for row in table(found)}
    assert rows["train/loss"] == ["1.7", "1.033", "29", "1.033"]
    assert rows["val/robust_auroc"] == ["0.51", "0.51", "9", "0.31"]
    assert "val/catastrophic_overfitting" not in rows


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("train/outlier_loss", "loss"),
        ("val/robust_auroc", "auroc"),
        ("val/ood/msp/pgd-both/auroc", "auroc"),
        ("val/ood/msp/pgd-both/fpr95", None),
        ("val/pgd/accuracy", "accuracy"),
        ("train/learning_rate", "learning-rate"),
        ("images_per_second", "speed"),
    ],
)
def test_each_number_has_its_figure(name, group):
    assert group_of(name) == group


def test_the_command_writes_a_page_with_curves_and_the_alarm(run, capsys):
    assert cli.report([str(run), "--tensorboard", "true"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {run / 'report.html'}" in said
    assert f"tensorboard --logdir {run}" in said
    text = (run / "report.html").read_text()
    for title in (
        "Loss",
        "Clean and robust AUROC",
        "Accuracy",
        "Learning rate",
        "Images per second",
    ):
        assert f"<h3>{title}</h3>" in text
    assert "catastrophic overfitting at step 29" in text
    assert "val/&lt;ood&gt;/msp" in text
    assert "<ood>" not in text
    assert "experiment: &lt;b&gt;run&lt;/b&gt;" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    beside = sorted(path.name for path in (run / "report_files").iterdir())
    assert beside == sorted(
        f"{name}.{kind}"
        for name in ("loss", "auroc", "accuracy", "learning-rate", "speed")
        for kind in ("csv", "png")
    )
    assert "val/robust_auroc,29," in (run / "report_files" / "auroc.csv").read_text()
    assert cli.report([str(run)]) == 0  # again, and the same
    assert (run / "report.html").read_text() == text


def test_a_run_without_tensorboard_has_no_times(run):
    for path in run.glob("events*"):
        path.unlink()
    assert math.isnan(read_run(run).seconds)
    page = reporting.write_training_report(run, run / "page.html").read_text()
    assert "minutes" not in page.partition("<main>")[0]


def test_mistakes_are_one_line(run, tmp_path, capsys):
    def said(*arguments):
        assert cli.report([str(argument) for argument in arguments]) == 2
        text = capsys.readouterr().err.strip()
        assert len(text.splitlines()) == 1
        return text

    assert "is a training run, which has a report of its own" in said(run, tmp_path)
    assert "format: " in said(run, "--format", "latex")
    assert "no HTML file" in said(run, "--output", tmp_path / "page.txt")
    with (run / "metrics.csv").open("a") as file:
        file.write("3,x\n")
    assert "metrics.csv is damaged" in said(run)
    (run / "metrics.csv").write_text("epoch,step\n")
    assert "has no rows yet" in said(run)
    (run / "metrics.csv").unlink()
    with pytest.raises(UserError, match=r"has no metrics\.csv"):
        reporting.write_training_report(run)
