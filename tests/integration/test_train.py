"""`train.py`: what a run writes, how it resumes, and what it says."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from robust_ood import cli
from robust_ood.callbacks import MetricsFile

ROOT = Path(__file__).parents[2]


def read_metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_writes_what_the_readme_says(trained_run):
    assert {path.name.split(".tfevents")[0] for path in trained_run.iterdir()} == {
        "config.yaml", "events.out", "hparams.yaml", "last.ckpt", "metrics.csv",
        ".training.lock",  # hidden, and free: its name stays for the next training
    }  # fmt: skip
    content = torch.load(trained_run / "last.ckpt", weights_only=True)
    assert content["method"] == "ALOE"
    assert content["network"]["name"] == "WideResNet"
    assert (content["epoch"], content["global_step"]) == (2, 8)  # both epochs are done


def test_metrics_have_a_row_for_each_step_and_validation(trained_run):
    rows = read_metrics(trained_run)
    losses = {int(row["step"]): float(row["train/loss"]) for row in rows if row["train/loss"]}
    assert list(losses) == list(range(8))
    validated = [row for row in rows if row["val/accuracy"]]
    assert [row["epoch"] for row in validated] == ["0", "1"]
    assert all(0 <= float(row["val/accuracy"]) <= 1 for row in validated)


def test_the_written_config_makes_the_same_run(trained_run, tmp_path):
    config = yaml.safe_load((trained_run / "config.yaml").read_text())
    assert config["net"]["init_args"]["depth"] == 10
    attack = config["model"]["init_args"]["inlier_attack"]
    assert attack["radius"] == pytest.approx(1 / 255)
    assert "include" not in config
    again = tmp_path / "again"
    assert cli.train(["fit", "-c", str(trained_run / "config.yaml"), "--output", str(again)]) == 0
    first, second = weights(trained_run / "last.ckpt"), weights(again / "last.ckpt")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_resumed_run_ends_as_the_run_never_stopped(capsys, experiment, trained_run, tmp_path):
    folder = tmp_path / "run"
    config = tmp_path / "stop.yaml"
    config.write_text(
        "trainer: {callbacks: [{class_path: tests_stop.Stop}]}\ncheckpoints: {every_n_steps: 3}\n"
    )
    (tmp_path / "tests_stop.py").write_text(
        "from pytorch_lightning import Callback\n"
        "class Stop(Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_step == 4: raise SystemExit(9)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        fit = ["fit", "-c", str(experiment), "--output", str(folder)]
        assert cli.train([*fit, "-c", str(config)]) == 9
    finally:
        sys.path.remove(str(tmp_path))
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 3
    assert cli.train([*fit, "--ckpt_path", "last"]) == 2  # without that callback it is another run
    assert "trainer.callbacks (was" in capsys.readouterr().err
    assert cli.train([*fit, "--ckpt_path", "last", "--resume_changed", "true"]) == 0
    whole, resumed = weights(trained_run / "last.ckpt"), weights(folder / "last.ckpt")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    columns = ("step", "epoch", "train/loss", "val/accuracy")
    assert [[row[c] for c in columns] for row in read_metrics(folder)] == [
        [row[c] for c in columns] for row in read_metrics(trained_run)
    ]


LOGGERS = """\
trainer:
  logger:
    - {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: FOLDER, version: VERSION}}
    - {class_path: tests_user.Lines, init_args: {path: FOLDER/VERSION.txt}}
  callbacks: [{class_path: tests_user.Smooth}]
checkpoints: {every_n_steps: 3}
"""
USER = """\
import os
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger

class Lines(Logger):
    name = version = "lines"
    def __init__(self, path: str):
        super().__init__()
        self.path = path
    def log_hyperparams(self, params, *args, **kwargs): ...
    def log_metrics(self, metrics, step=None):
        with open(self.path, "a") as file:
            file.write(f"{step} {sorted(metrics.items())}\\n")

class Smooth(Callback):
    '''A user's callback with a state, which changes what the run computes.'''
    def __init__(self):
        self.loss = 0.0
    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.loss = 0.5 * self.loss + outputs["loss"].item()
        module.log("train/smooth_loss", self.loss)
        module.outlier_weight = 0.5 / (1 + self.loss)
        if trainer.global_step == 5 and "KILLED" in os.environ: raise SystemExit(9)
    def state_dict(self):
        return {"loss": self.loss, "weight": 0.5 / (1 + self.loss)}
    def load_state_dict(self, state_dict):
        self.loss = state_dict["loss"]
    def on_train_start(self, trainer, module):
        module.outlier_weight = 0.5 / (1 + self.loss)
"""


def test_a_user_s_loggers_and_callbacks_work_beside_the_built_in_ones_and_resume(
    experiment, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tests_user.py").write_text(USER)

    def fit(name, version, *more):
        config = tmp_path / f"{version}.yaml"
        text = LOGGERS.replace("FOLDER", str(tmp_path)).replace("VERSION", version)
        config.write_text(text.replace("lightning.pytorch", "pytorch_lightning"))
        arguments = ["fit", "-c", str(experiment), "-c", str(config)]
        return cli.train([*arguments, "--output", str(tmp_path / name), *more])

    assert fit("whole", "whole") == 0
    monkeypatch.setenv("KILLED", "1")
    assert fit("killed", "first") == 9
    monkeypatch.delenv("KILLED")
    assert fit("killed", "second", "--ckpt_path", "last") == 0  # another logger is no other run
    ends = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "killed")
    ]
    assert all(torch.equal(ends[0]["state_dict"][key], ends[1]["state_dict"][key]) for key in
               ends[0]["state_dict"])  # fmt: skip
    assert ends[0]["callbacks"]["Smooth"] == ends[1]["callbacks"]["Smooth"]
    rows = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert rows[0] == rows[1]
    whole, first, second = (
        (tmp_path / f"{name}.txt").read_text().splitlines() for name in ("whole", "first", "second")
    )
    assert whole[-len(second) :] == second
    assert whole[: len(first)] == first
    assert len(first) + len(second) >= len(whole)
    assert (tmp_path / "lightning_logs" / "second" / "metrics.csv").exists()
    assert list((tmp_path / "whole").glob("events.out.tfevents.*"))


def test_one_logger_is_given_by_its_class_path(experiment, tmp_path):
    arguments = ["fit", "-c", str(experiment), "--output", str(tmp_path / "run")]
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path)]
    assert cli.train([*arguments, *logger, "--trainer.max_steps", "1"]) == 0
    assert (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").exists()
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_old_settings_of_the_optimiser_still_work(experiment, tmp_path):
    config = tmp_path / "old.yaml"
    config.write_text(
        "model: {init_args: {optimization: {learning_rate: 0.2, momentum: 0.8, schedule: milestones,"
        " decay: 0.5}}}\n"
    )
    arguments = ["fit", "-c", str(experiment), "-c", str(config), "--trainer.max_steps", "2"]
    with pytest.warns(DeprecationWarning, match="optimization.momentum is deprecated"):
        assert cli.train([*arguments, "--output", str(tmp_path / "old")]) == 0
    new = ["--model.optimization.learning_rate", "0.2"]
    new += ["--model.optimization.optimizer",
            "{name: sgd, lr: 0.1, momentum: 0.8, nesterov: true, weight_decay: 1.0e-4}",
            "--model.optimization.scheduler", "{name: milestones, gamma: 0.5}"]  # fmt: skip
    arguments = ["fit", "-c", str(experiment), *new, "--trainer.max_steps", "2"]
    assert cli.train([*arguments, "--output", str(tmp_path / "new")]) == 0
    first, second = (weights(tmp_path / name / "last.ckpt") for name in ("old", "new"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_validation_and_test_of_a_checkpoint(capsys, experiment, trained_run, tmp_path, command):
    arguments = [command, "-c", str(experiment), "--ckpt_path", str(trained_run / "last.ckpt")]
    assert cli.train([*arguments, "--output", str(tmp_path / "none")]) == 0
    assert (
        f"{'val' if command == 'validate' else 'test'}/accuracy"
        in capsys.readouterr().out.replace(" ", "")
    )
    assert not (tmp_path / "none").exists()


def test_a_fast_development_run_writes_nothing(experiment, tmp_path):
    arguments = [
        "fit",
        "-c",
        str(experiment),
        "--trainer.fast_dev_run",
        "true",
        "--output",
        str(tmp_path / "none"),
    ]
    assert cli.train(arguments) == 0
    assert not (tmp_path / "none").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(capsys, trained_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    fit = ["fit", "-c", str(folder / "config.yaml"), "--output", str(folder)]
    assert cli.train(fit) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: output: {folder} holds a run (")
    assert "--ckpt_path last" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "best").mkdir()
    shutil.copy(folder / "last.ckpt", tmp_path / "best" / "best.ckpt")
    assert (
        cli.train(["fit", "-c", str(folder / "config.yaml"), "--output", str(tmp_path / "best")])
        == 2
    )
    assert (
        f"continue it with --ckpt_path {tmp_path / 'best' / 'best.ckpt'}" in capsys.readouterr().err
    )
    elsewhere = [
        "--ckpt_path",
        str(trained_run / "last.ckpt"),
    ]  # of another folder: it would write over this run, too
    assert cli.train([*fit, *elsewhere]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert cli.train([*fit, "--replace", "true", "--trainer.max_steps", "1"]) == 0
    assert (folder / "last.ckpt").read_bytes() != before[folder / "last.ckpt"]
    assert "replace" not in (folder / "config.yaml").read_text()


def test_a_method_without_outliers_trains_where_their_file_is_absent(capsys, experiment):
    arguments = [
        "fit",
        "-c",
        str(experiment),
        "--model",
        "Standard",
        "--data.outliers",
        "absent.npz",
    ]
    assert cli.train([*arguments, "--trainer.fast_dev_run", "true"]) == 0, capsys.readouterr().err


def test_a_mistake_is_told_also_where_another_process_has_removed_the_folder(
    capsys, monkeypatch, experiment, tmp_path
):
    def raced(folder, **settings):
        remove(folder)
        remove(folder, **settings)

    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", raced)
    arguments = [
        "fit",
        "-c",
        str(experiment),
        "--output",
        str(tmp_path / "run"),
        "--checkpoints.monitor",
        "nothing",
    ]
    assert cli.train([*arguments, "--checkpoints.every_n_steps", "null"]) == 2
    assert capsys.readouterr().err.startswith("error: checkpoints.monitor: 'nothing' is not logged")
    assert not (tmp_path / "run").exists()


def test_best_follows_the_monitored_number(experiment, tmp_path):
    arguments = [
        "fit",
        "-c",
        str(experiment),
        "--checkpoints.monitor",
        "val/accuracy",
        "--output",
        str(tmp_path / "run"),
    ]
    assert cli.train(arguments) == 0
    scores = {
        row["epoch"]: float(row["val/accuracy"])
        for row in read_metrics(tmp_path / "run")
        if row["val/accuracy"]
    }
    best = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)
    assert str(best["epoch"]) == max(scores, key=scores.__getitem__)


def test_print_config_prints_yaml_and_stops(capsys, experiment, tmp_path):
    assert (
        cli.train(
            ["fit", "-c", str(experiment), "--output", str(tmp_path / "none"), "--print_config"]
        )
        == 0
    )
    assert yaml.safe_load(capsys.readouterr().out)["data"]["batch_size"] == 16
    assert not (tmp_path / "none").exists()


def test_a_run_says_only_what_is_news(experiment, tmp_path):
    command = [
        sys.executable,
        ROOT / "train.py",
        "fit",
        "-c",
        experiment,
        "--output",
        tmp_path / "run",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"wrote {tmp_path / 'run' / 'last.ckpt'}"]


@pytest.mark.parametrize("arguments", [["-h"], ["fit", "--help"]])
def test_help_is_short_and_loads_nothing(arguments):
    check = (
        "import sys; from robust_ood.cli import train, evaluate; code = train(sys.argv[1:]) + evaluate(['-h']);"
        "heavy = {'torch', 'pytorch_lightning', 'jsonargparse'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) < 75
    assert max(map(len, lines)) <= 100
    for words in ("usage: train.py", "usage: evaluate.py", "--checkpoint FILE", "--ckpt_path last"):
        assert words in done.stdout


def test_all_settings_are_listed_on_request(capsys):
    assert cli.train(["fit", "--help-all"]) == 0
    shown = capsys.readouterr().out
    assert "--data.outlier_batch_size" in shown
    assert "robust_ood.training.ALOE" in "".join(shown.split())
    assert "torchvision.models" not in shown


def test_the_installed_command(capsys):
    assert cli.main(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: command: unknown name 'trian'; did you mean 'train'?"
    )
    assert cli.main(["train", "-h"]) == 0
    assert capsys.readouterr().out.startswith("usage: train.py")


def test_metrics_file_goes_on_where_the_resumed_run_began(tmp_path):
    first = MetricsFile(tmp_path)
    for step in range(4):
        first.log_metrics({"epoch": 0, "loss": step}, step)
    second = MetricsFile(tmp_path)
    second.truncate(2)  # as many as its checkpoint knew of
    second.log_metrics({"epoch": 0, "loss": 20}, 2)
    second.log_metrics({"epoch": 0, "accuracy": 0.5}, 2)
    rows = [(row["step"], row["loss"], row["accuracy"]) for row in read_metrics(tmp_path)]
    assert rows == [("0", "0.0", ""), ("1", "1.0", ""), ("2", "20.0", ""), ("2", "", "0.5")]
