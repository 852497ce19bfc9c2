"""Loggers of trackers: what is missing is one line, settings go to all, a resumed run goes on."""

from __future__ import annotations

import json
import os
import re
import sys
from argparse import Namespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_ood import cli
from robust_ood.callbacks.hyperparameters import hyperparameters
from robust_ood.cli.loggers import TRACKERS, ready_loggers, user_loggers
from robust_ood.errors import UserError

TRACKER = """
import json
import os
import re
from pytorch_lightning.loggers import Logger

class MLFlowLogger(Logger):
    '''As Lightning's: a run has a name of the server's, or goes on under a given one.'''
    def __init__(self, path: str, run_id: str | None = None):
        super().__init__()
        self.path = path
        self.run_id = run_id
    name = "tracker"
    @property
    def version(self):
        self.run_id = self.run_id or "made-by-the-server"
        return self.run_id
    def write(self, **line):
        with open(self.path, "a") as file:
            file.write(json.dumps({"run": self.version, **line}) + "\\n")
    def log_hyperparams(self, params, *args, **kwargs):
        self.write(settings=params)
    def log_metrics(self, metrics, step=None):
        self.write(step=step)
"""


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_tracker_is_one_line(name, capsys, monkeypatch, experiment, tmp_path):
    monkeypatch.setattr("robust_ood.cli.loggers.find_spec", lambda module: None)
    options = ["fit", "-c", str(experiment), "--output", str(tmp_path / "run")]
    assert cli.train([*options, "--trainer.logger", name]) == 2
    message = capsys.readouterr().err
    extra = TRACKERS[name].extra
    assert message.startswith(f"error: trainer.logger: {name} needs the package ")
    assert f'pip install "robust-ood[{extra}]"' in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_goes_on_in_the_trackers_run(name, monkeypatch):
    monkeypatch.setattr("robust_ood.cli.loggers.find_spec", lambda module: "installed")
    argument = TRACKERS[name].run_argument

    def made(**arguments):
        return Namespace(class_path=f"pytorch_lightning.loggers.{name}", init_args=arguments)

    first = made(**{argument: None})
    second = made(**{argument: None})
    own = made(**{argument: "mine"})
    other = Namespace(class_path="pytorch_lightning.loggers.CSVLogger", init_args={})
    checkpoint = {"tracked_runs": [[name, "a"], ["Other", "x"], [name, "b"]]}
    ready_loggers([first, other, second, own], checkpoint)
    assert [first.init_args[argument], second.init_args[argument]] == ["a", "b"]
    assert own.init_args[argument] == "mine"
    assert other.init_args == {}
    for setting in (None, True, made(**{argument: None})):
        ready_loggers(setting, None)


def test_the_arguments_are_those_of_lightnings_loggers():
    import inspect

    from pytorch_lightning import loggers

    for name, tracker in TRACKERS.items():
        assert tracker.run_argument in inspect.signature(getattr(loggers, name)).parameters


def test_a_tracker_gets_settings_once_and_its_run_again(experiment, tmp_path, monkeypatch):
    (tmp_path / "tests_tracker.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("robust_ood.cli.loggers.find_spec", lambda module: "installed")
    lines = tmp_path / "lines.txt"
    logger = {"class_path": "tests_tracker.MLFlowLogger", "init_args": {"path": str(lines)}}
    fit = ["fit", "-c", str(experiment), "--output", str(tmp_path / "run")]
    fit += ["--trainer.logger", json.dumps(logger)]
    try:
        assert cli.train([*fit, "--trainer.max_epochs", "1"]) == 0
        checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
        assert checkpoint["tracked_runs"] == [["MLFlowLogger", "made-by-the-server"]]
        checkpoint["tracked_runs"][0][1] = "the-same"
        torch.save(checkpoint, tmp_path / "run" / "last.ckpt")
        assert cli.train([*fit, "--ckpt_path", "last", "--resume_changed", "true"]) == 0
    finally:
        sys.modules.pop("tests_tracker", None)
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    settings = [line["settings"] for line in written if "settings" in line]
    assert len(settings) == 1
    assert settings[0]["model"] == "robust_ood.training.ALOE"
    assert {line["run"] for line in written if line.get("step", 0) > 4} == {"the-same"}


def test_tensorboard_compares_runs_by_setting(trained_run):
    board = EventAccumulator(str(trained_run))
    board.Reload()
    tags = board.summary_metadata
    assert "_hparams_/session_start_info" in tags
    start = tags["_hparams_/session_start_info"].plugin_data.content
    assert b"model.inlier_attack.radius" in start
    assert b"val/accuracy" in tags["_hparams_/experiment"].plugin_data.content
    assert "hp_metric" not in board.Tags()["scalars"]


def test_only_what_changes_the_run_is_a_hyperparameter():
    config = {
        "seed_everything": 3, "output": "runs/x", "averaging": {"decay": None},
        "net": {"class_path": "Net", "init_args": {"depth": 10}},
        "data": {"root": "/data", "reading": {"workers": 4}, "train": "x", "near": ["a", "b"]},
        "trainer": {"max_epochs": 2, "devices": 1},
    }  # fmt: skip
    assert hyperparameters(config) == {
        "seed_everything": 3, "net": "Net", "net.depth": 10, "data.train": "x",
        "data.near": "['a', 'b']", "trainer.max_epochs": 2,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"trainer\.logger: false"):
        user_loggers(False)


REFUSING = """
from pytorch_lightning.loggers import Logger

class Refusal(Exception):
    pass

class Tracker(Logger):
    name = "tracker"
    version = "1"
    def log_hyperparams(self, params, *args, **kwargs): ...
    def log_metrics(self, metrics, step=None): ...

class MLFlowLogger(Tracker):
    def __init__(self, run_id: str | None = None):
        raise Refusal("The folder is in maintenance mode.\\nMigrate.")

class CometLogger(Tracker):
    def __init__(self, experiment_key: str | None = None):
        raise ValueError("An API key is required")

class WandbLogger(Tracker):
    '''Refuses late, as Lightning's: when the run is first asked for.'''
    def __init__(self, id: str | None = None):
        super().__init__()
    @property
    def experiment(self):
        raise Refusal("No API key configured.")

class Mine(Tracker):
    def __init__(self):
        raise RuntimeError("a bug")
"""


@pytest.fixture
def refusing(tmp_path, monkeypatch):
    (tmp_path / "tests_refusing.py").write_text(REFUSING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("robust_ood.cli.loggers.find_spec", lambda module: "installed")
    yield
    sys.modules.pop("tests_refusing", None)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_refuses_is_one_line(name, capsys, refusing, experiment, tmp_path):
    options = ["fit", "-c", str(experiment), "--output", str(tmp_path / "run")]
    assert cli.train([*options, "--trainer.logger", f"tests_refusing.{name}"]) == 2
    message = capsys.readouterr().err
    assert re.match(f"error: trainer.logger: {name}: (The folder|An API key|No API key)", message)
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_users_own_logger_keeps_its_traceback(refusing, experiment, tmp_path):
    options = ["fit", "-c", str(experiment), "--output", str(tmp_path / "run")]
    with pytest.raises((RuntimeError, ValueError), match="a bug"):
        cli.train([*options, "--trainer.logger", "tests_refusing.Mine"])


def test_comet_offline_writes_what_lightning_would_disable(monkeypatch):
    monkeypatch.setattr("robust_ood.cli.loggers.find_spec", lambda module: "installed")
    monkeypatch.setenv("COMET_START_ONLINE", "1")
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", "comet")

    def offline():
        path = "pytorch_lightning.loggers.CometLogger"
        return Namespace(class_path=path, init_args={"online": False, "experiment_key": None})

    first = offline()
    ready_loggers(first, None)
    assert first.init_args["online"] is None
    assert os.environ["COMET_START_ONLINE"] == "0"
    assert os.environ["COMET_OFFLINE_DIRECTORY"] == "comet"
    # The archive of the run before has the same name, and stays.
    ready_loggers(offline(), {"global_step": 8})
    assert os.environ["COMET_OFFLINE_DIRECTORY"] == os.path.join("comet", "from-step-8")
