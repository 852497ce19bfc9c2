"""Every mistake ends in exit code 2 and one line that names the field, and leaves nothing
half-written.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_ood import cli
from robust_ood.models import WideResNet

ROOT = Path(__file__).parents[2]


def fails(capsys, command, arguments, field: str, *said: str) -> str:
    """Run a command and check that it ends as a mistake should; return the line."""
    capsys.readouterr()
    code = command([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert lines[0].startswith(f"error: {field}: "), lines[0]
    for words in said:
        assert words in lines[0]
    assert len(lines[0]) < 700
    return lines[0]


OPTIONS = [
    # unknown or misspelt keys: the nearest known one is named
    ("--data.batchsize 3", "data.batchsize", "did you mean 'data.batch_size'"),
    ("--trainer.max_stepz 3", "trainer.max_stepz", "'trainer.max_steps'"),
    ("--model.inlier_attack.stepz 3", "model.inlier_attack.stepz", "'model.inlier_attack.steps'"),
    ("--model.optimization.learning_rat 1", "model.optimization.learning_rat", "learning_rate"),
    ("--net.dept 10", "net.dept", "'net.depth'"),
    ("--model ALOO", "model", "did you mean 'ALOE'"),
    ("--net robust_ood.models.WideResNett", "net", "did you mean 'WideResNet'"),
    ("--model.inlier_attack.norm L3", "model.inlier_attack.norm", "'L2'"),
    ("stray", "argument", "'stray'"),
    # wrong types
    ("--data.batch_size many", "data.batch_size", "expected a whole number, got 'many'"),
    ("--data.batch_size 1.5", "data.batch_size", "whole number"),
    ("--data.near 3", "data.near", "a list"),
    ("--data.augmentation flip", "data.augmentation", "crop_and_flip, none"),
    ("--model.attack_mode eva", "model.attack_mode", "expected one of eval, train, got 'eva'"),
    ("--model.outlier_weight heavy", "model.outlier_weight", "a finite number"),
    ("--trainer.precision 17", "trainer.precision", "'17'", "bf16-mixed"),
    ("--seed_everything x", "seed_everything", "'x'"),
    ("--seed_everything true", "seed_everything", "True is not a seed"),
    ("--seed_everything -1", "seed_everything", "-1 is not a seed"),
    # values that make no sense
    ("--model.inlier_attack.radius -1/255", "model.inlier_attack.radius", "negative"),
    (
        "--model.inlier_attack.radius -0.1",
        "model.inlier_attack.radius",
        "-0.1 is negative",
    ),
    (
        "--model.inlier_attack.radius 8/0",
        "model.inlier_attack.radius",
        "'8/0'",
        "such as 8/255",
    ),
    (
        "--model.inlier_attack.radius 8",
        "model.inlier_attack.radius",
        "whole pixel range",
        "'8/255'",
    ),
    ("--detectors [msp]", "detectors", "a setting of evaluate.py"),
    ("--model.inlier_attack.radius nan", "model.inlier_attack.radius", "finite"),
    ("--model.inlier_attack.steps 0", "model.inlier_attack.steps", "0 is not a whole number >= 1"),
    ("--model.outlier_weight -1", "model.outlier_weight", "expected a number >= 0"),
    ("--model.optimization.learning_rate 0", "model.optimization.learning_rate", "not > 0"),
    ("--net.depth 11", "net.depth", "6n + 4"),
    ("--net.num_classes 7", "net", "7 logits", "data.num_classes is 4"),
    ("--data.batch_size 0", "data.batch_size", ">= 1"),
    ("--data.batch_size 1000", "batch_size", "1000", "64 images"),
    ("--checkpoints.every_n_steps 0", "checkpoints.every_n_steps", ">= 1"),
    (
        "--checkpoints.monitor val/foo",
        "checkpoints.monitor",
        "'val/foo' is not logged",
        "val/accuracy",
    ),
    ("--data.outliers null", "data.outliers", "ALOE trains with outliers"),
    ("--data.train null", "data.train", "not given"),
    ("--data.train nothing.npz", "data.train", "no such file"),
    ("--data.root /nowhere", "data.root", "no such folder"),
    ("--data.root x --data.train y", "data.root", "no such folder"),
    ("--trainer.accelerator quantum", "trainer", "quantum"),
    ("--trainer.max_epochs -7", "trainer.max_epochs", "-7", ">= -1"),
    ("--trainer.sync_batchnorm true --trainer.devices 2", "trainer.sync_batchnorm", "needs GPUs"),
    ("--trainer.precision 16-mixed", "trainer.precision", "16-mixed", "bf16-mixed"),
    ("--model.optimization.schedule step", "model.optimization.schedule", "one of cosine, miles"),
    (
        "--model.optimization.schedule milestones --model.optimization.milestones [0.5,2]",
        "model.optimization.scheduler.milestones",
        "shares of the run",
    ),
    (
        "--model.optimization.schedule one_cycle --model.optimization.warmup 1",
        "model.optimization.scheduler.warmup",
        "share of the run",
    ),
    (
        "--model.optimization.schedule milestones --model.optimization.decay 0",
        "model.optimization.scheduler.gamma",
        "not > 0",
    ),
    ("--model.optimization.momentum 1", "model.optimization.optimizer.momentum", "[0, 1)"),
    ("--model.optimization.final_learning_rate -1", "model.optimization.scheduler.eta_min", ">= 0"),
    ("--model.optimization.optimizer adamv", "model.optimization.optimizer", "did you mean 'Adam'"),
    (
        "--model.optimization.scheduler cosin",
        "model.optimization.scheduler",
        "did you mean 'cosine'",
    ),
    ("--model.optimization.interval batch", "model.optimization.interval", "one of step, epoch"),
    ("--model.compile perhaps", "model.compile", "true or false"),
    ("--model robust_ood.training.GaussianNoise --model.sigma 0", "model.sigma", "not > 0"),
    ("--averaging.decay 1", "averaging.decay", "[0, 1)"),
    ("--guards.limit -1", "guards.limit", ">= 0"),
    ("--guards.attacks_every_n_steps 0", "guards.attacks_every_n_steps", ">= 1"),
    ("--checkpoints.keep 0", "checkpoints.keep", ">= 1"),
    ("--checkpoints.every_n_minutes 0", "checkpoints.every_n_minutes", "> 0"),
    ("--robust_validation.every_n_epochs 0", "robust_validation.every_n_epochs", ">= 1"),
    ("--robust_validation.detectors [msq]", "detectors", "'msp'"),
    ("--robust_validation.detectors {name:msp}", "robust_validation.detectors", "a list"),
    ("--trainer.max_epochs -1", "trainer.max_epochs", "max_steps"),
    ("--trainer.precision bf16-true", "trainer.precision", "bf16-mixed"),
    ("--trainer.accumulate_grad_batches 0", "trainer.accumulate_grad_batches", ">= 1"),
    ("--trainer.val_check_interval 500", "trainer", "val_check_interval"),
    ("--trainer.logger false", "trainer.logger", "metrics.csv"),
    ("--trainer.default_root_dir here", "trainer.default_root_dir", "--output"),
    ("--data.outlier_batch_size 0", "data.outlier_batch_size", "trains with outliers"),
    ("--model.inlier_attack.restarts 5", "model.inlier_attack.restarts", "evaluations"),
    ("--robust_validation.detectors [msp]", "data.validation_ood", "not given"),
    ("--robust_validation.attacks [{name:pgdd}]", "attacks", "pgd"),
    ("--init_from nothing.ckpt", "init_from", "nothing.ckpt"),
    ("--ckpt_path last", "checkpoint", "no such file"),
    ("--include", "include", "expects a value"),
    ("--include missing.yaml", "config", "missing.yaml"),
    # what would be ignored, or would train nothing
    ("--experiment ../../x", "experiment", "is a path", "--output"),
    ("--experiment /tmp/x", "experiment", "is a path"),
    ("--model.seed 3", "model.seed", "seed_everything"),
    ("--model.init_args.seed 3", "model.seed", "seed_everything"),
    ("--data.seed 3", "data.seed", "seed_everything"),
    ("--trainer.max_epochs 0", "trainer.max_epochs", "train nothing"),
    ("--trainer.max_steps 0", "trainer.max_steps", "train nothing"),
    ("--trainer.limit_train_batches 0", "trainer.limit_train_batches", "train nothing"),
    ("--trainer.limit_train_batches 0.0", "trainer.limit_train_batches", "train nothing"),
    ("--trainer.max_time 00:00:00:00", "trainer.max_time", "train nothing"),
    ("--trainer.gradient_clip_val -1", "trainer.gradient_clip_val", ">= 0"),
    ("--trainer.check_val_every_n_epoch 0", "trainer.check_val_every_n_epoch", ">= 1"),
    ("--trainer.devices -3", "trainer.devices", "-3"),
    ("--trainer.plugins wrong", "trainer.plugins", "import path of a class"),
    # what has no end
    ("--checkpoints.keep 1000000000", "checkpoints.keep", "too large"),
    ("--data.outlier_batch_size 99999999", "data.outlier_batch_size", "<= 1048576"),
    ("--model.optimization.learning_rate 1e308", "model.optimization.learning_rate", "float32"),
    ("--data.batch_size=", "data.batch_size", "whole number"),
    ("--output=", "output", "is empty"),
    ("--data /dev/zero", "data", "/dev/zero is not a file"),
    ("--trainer.max_epochs " + "9" * 5000, "trainer.max_epochs"),
]


@pytest.mark.parametrize(
    ("options", "field", "said"), [(o, f, s) for o, f, *s in OPTIONS], ids=[o[0] for o in OPTIONS]
)
def test_a_bad_option_of_fit(capsys, experiment, tmp_path, options, field, said):
    output = tmp_path / "run"
    fails(
        capsys,
        cli.train,
        ["fit", "-c", experiment, "--output", output, *options.split()],
        field,
        *said,
    )
    assert not output.exists()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("data: {batchsize: 3}", "data.batchsize", "'data.batch_size'"),
        ("dat: {batch_size: 3}", "dat.batch_size", "'data.batch_size'"),
        ("data: {batch_size: [1]}", "data.batch_size", "whole number"),
        ("model: {init_args: {inlier_attack: {steps: 0}}}", "model.inlier_attack.steps", ">= 1"),
        ("model: {init_args: {inlier_attack: {stepz: 1}}}", "model.inlier_attack.stepz", "steps"),
        ("model: {init_args: {inlier_weight: 1}}", "model.inlier_weight", "outlier_weight"),
        ("model: {class_path: robust_ood.training.ALOO}", "model", "'ALOE'"),
        ("model: {class_path: robust_odd.training.ALOE}", "model", "robust_odd"),
        ("a: [", "config", "is not YAML"),
        ("data: {}\ndata: {}", "config", "line 2: 'data' is given twice, first in line 1"),
        ("trainer: [1]", "trainer", "expected a mapping of settings, got [1]"),
        ("data: {reading: 3}", "data.reading", "expected a mapping of settings, got 3"),
        ("model: {dict_kwargs: {x: 1}}", "model.x", "unknown setting"),
        ("model: {dict_kwargs: 3}", "model.dict_kwargs", "expected a mapping"),
        ("model: {init_args: {seed: 3}}", "model.seed", "seed_everything"),
        ("config: bad.yaml", "config", "include"),
        ("on: 1", "True", "unless they are quoted"),
        ("- a", "config", "expected a mapping"),
        ("include: [missing.yaml]", "config", "missing.yaml"),
        ("include: 3", "include", "a list of file names"),
        ("include: [bad.yaml]", "include", "includes itself"),
    ],
)
def test_a_bad_config(capsys, experiment, tmp_path, text, field, said):
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    output = tmp_path / "run"
    fails(
        capsys, cli.train, ["fit", "-c", experiment, "-c", config, "--output", output], field, said
    )
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["fit"], "model, net"),
        (["fitt"], "command"),
        (["fit", "-c"], "-c"),
        (["fit", "-c", "/nowhere.yaml"], "config"),
    ],
)
def test_a_command_without_what_it_needs(capsys, arguments, field):
    fails(capsys, cli.train, arguments, field)


def test_misspelt_sub_commands_name_the_nearest_of_their_own_command(capsys):
    fails(
        capsys,
        cli.data,
        ["lst"],
        "command",
        "did you mean 'list'? known: download, list, overlap, preview, verify",
    )
    fails(capsys, cli.train, ["fti"], "command", "did you mean 'fit'? known: fit, test, validate")
    line = fails(capsys, cli.data, ["overlap", "a"], "second", "this command needs it")
    assert "config" not in line


def test_our_commands_use_nothing_that_jsonargparse_deprecates(
    monkeypatch, grid, trained_run, tmp_path
):
    deprecation = pytest.importorskip("jsonargparse._deprecated").JsonargparseDeprecationWarning
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    monkeypatch.setattr("robust_ood.cli.evaluate_command.quiet", lambda: None)
    last = str(trained_run / "last.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", deprecation)
        assert cli.data(["list"]) == 0
        assert (
            cli.main(["export", "--checkpoint", last, "--output", str(tmp_path / "exported")]) == 0
        )
        arguments = [
            "-c",
            str(grid),
            "--checkpoint",
            last,
            "--output",
            str(tmp_path / "out"),
            "--attacks",
            "[]",
        ]
        assert cli.evaluate(arguments) == 0


def test_training_shows_no_warning_of_deprecation(experiment, tmp_path):
    """Lightning's own calls are silenced in training; a fresh interpreter with all warnings on
    shows it.
    """
    command = [
        sys.executable,
        "-W",
        "default",
        ROOT / "train.py",
        "fit",
        "-c",
        experiment,
        "--output",
        tmp_path / "o",
    ]
    done = subprocess.run(
        [*command, "--trainer.fast_dev_run", "true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated in v4" not in done.stderr
    assert "JsonargparseDeprecationWarning" not in done.stderr


GRID_OPTIONS = [
    ("--lmit 3", "lmit", "'limit'"),
    ("--limit 0", "limit", ">= 1"),
    ("--limit few", "limit", "expected a whole number or null, got 'few'"),
    ("--device gpu", "device", "'gpu'", "auto, cpu, cuda"),
    ("--detectors msp", "detectors", "a list"),
    ("--detectors [mspp]", "detectors", "did you mean 'msp'"),
    ("--detectors [msp,msp]", "detectors", "is duplicated", "label"),
    ("--detectors [{nam:msp}]", "detectors", "name"),
    ("--detectors [{name:msp,temp:3}]", "detectors.msp.temp", "'temperature'"),
    ("--detectors [{name:msp,temperature:hot}]", "detectors.msp.temperature", "'hot'"),
    (
        "--detectors [{name:mahalanobis-layers,layers:5}]",
        "detectors.mahalanobis-layers.layers",
        "5",
    ),
    ("--detectors [{name:safe-spot,norm:L3}]", "detectors.safe-spot.norm", "'L2'"),
    ("--detectors [{name:safe-spot,steps:0}]", "detectors.safe-spot.steps", ">= 1"),
    ("--detectors [{name:msp,temperature:0}]", "detectors.msp.temperature", "number > 0"),
    ("--detectors [{name:gen,top:1.5}]", "detectors.gen.top", "whole number"),
    ("--detectors [{name:pro-msp,step:3}]", "detectors.pro-msp.step", "'steps'"),
    ("--detectors [{name:pro-msp,steps:0}]", "detectors.pro-msp.steps", ">= 1"),
    ("--detectors [{name:pro-gen,gamma:x}]", "detectors.pro-gen.gamma", "'x'"),
    ("--detectors [{name:pro-msp,units:inches}]", "detectors.pro-msp.units", "pixels"),
    ("--detectors [{name:odin,net:3}]", "detectors.odin.net", "magnitude"),
    (
        "--attacks [{name:pgd,radius:8}]",
        "attacks.pgd.radius",
        "8.0 is more than the whole pixel range",
    ),
    ("--model ALOE", "model", "a setting of train.py"),
    ("--attacks [pgdd]", "attacks", "did you mean 'pgd'"),
    ("--attacks [{name:pgd,radius:-1}]", "attacks.pgd.radius", "negative"),
    ("--attacks [{name:pgd,radius:8/0}]", "attacks.pgd.radius", "'8/0'"),
    ("--attacks [{name:pgd,norm:L3}]", "attacks.pgd.norm", "'L2'"),
    ("--attacks [{name:pgd,norm:L1}]", "attacks.pgd.radius", "a sum over all pixels"),
    ("--attacks [{name:pgd,steps:0}]", "attacks.pgd.steps", ">= 1"),
    ("--attacks [{name:pgd,steps:ten}]", "attacks.pgd.steps", "whole number"),
    ("--attacks [{name:pgd,step:1}]", "attacks.pgd.step", "'steps'"),
    ("--attacks [{name:pgd,random_start:maybe}]", "attacks.pgd.random_start", "true or false"),
    ("--attacks [{name:pgd,step_size:x}]", "attacks.pgd.step_size", "'x'"),
    ("--data.far [noise/gausian]", "data.far", "noise/gaussian"),
    ("--data.test null", "data.test", "not given"),
    ("--data.near [] --data.far []", "data", "near nor far"),
    ("--data.num_classes 5", "net", "4 logits", "data.num_classes is 5"),
    ("--data.far [noise/uniform]", "data.far", "uniform-noise are 32 x 32", "16 x 16"),
    (
        "--net robust_ood.models.WideResNet --net.depth 16 --net.num_classes 4",
        "checkpoint",
        "another network than WideResNet",
    ),
    ("--net ThinResNet --net.num_classes 4", "checkpoint", "another network than ThinResNet"),
    ("--net robust_ood.models.WideResNet --net.depth 17", "net.depth", "6n + 4"),
    ("--name ..", "name", "is a path"),
    ("--name=", "name", "is empty"),
    ("--intervals 1000000000000", "intervals", "too large"),
    ("--attacks [{name:pgd,steps:100000000000000000000000}]", "attacks.steps", "too large"),
    ("--detectors [{name:msp,label:..}]", "detectors.label", "is a path"),
    ("--detectors [{name:msp,label:[1]}]", "detectors.label", "a string"),
    ("--output=", "output", "is empty"),
    ("--include missing.yaml", "config", "missing.yaml"),
]


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [(o, f, s) for o, f, *s in GRID_OPTIONS],
    ids=[o[0] for o in GRID_OPTIONS],
)
def test_a_bad_option_of_evaluate(capsys, grid, trained_run, tmp_path, options, field, said):
    output = tmp_path / "results"
    arguments = ["-c", grid, "--checkpoint", trained_run / "last.ckpt", "--output", output]
    fails(capsys, cli.evaluate, [*arguments, *_split(options)], field, *said)
    assert os.listdir(tmp_path) == []


def _split(options: str) -> list[str]:
    """Split options at blanks, and give YAML the blank after its colons."""
    return [part.replace(":", ": ") if part.startswith("[") else part for part in options.split()]


def broken(kind: str, path: Path, whole: Path) -> Path:
    """Write a file that is no checkpoint, in one of the ways that happen."""
    if kind == "truncated":
        path.write_bytes(whole.read_bytes()[:-2000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("these are not weights\n")
    elif kind == "image array":
        np.savez(path.with_suffix(".npz"), images=np.zeros(3))
        path.with_suffix(".npz").rename(path)
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "no weights":
        torch.save({"note": "nothing here"}, path)
    elif kind == "another network":
        torch.save({"state_dict": torch.nn.Linear(3, 2).state_dict()}, path)
    elif kind == "folder":
        path.mkdir()
    return path


BROKEN = [
    "missing",
    "truncated",
    "empty",
    "text",
    "image array",
    "list",
    "no weights",
    "another network",
    "folder",
]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_checkpoint(capsys, experiment, grid, trained_run, tmp_path, kind):
    bad = broken(kind, tmp_path / "bad.ckpt", trained_run / "last.ckpt")
    output = tmp_path / "out"
    line = fails(
        capsys, cli.evaluate,
        ["-c", grid, "--net", "robust_ood.models.WideResNet", "--net.depth", 10, "--net.width", 1,
         "--net.num_classes", 4, "--checkpoint", bad, "--output", output], "checkpoint",
    )  # fmt: skip
    assert str(bad) in line
    for command in ("fit", "test"):
        capsys.readouterr()
        assert (
            cli.train(
                [command, "-c", str(experiment), "--ckpt_path", str(bad), "--output", str(output)]
            )
            == 2
        )
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not output.exists()


class Malicious:
    """What unpickling this would do."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["torch", "bare pickle"])
def test_code_in_a_checkpoint_is_not_run(capsys, experiment, grid, trained_run, tmp_path, form):
    proof, bad, output = tmp_path / "proof", tmp_path / "bad.ckpt", tmp_path / "out"
    content = torch.load(trained_run / "last.ckpt", weights_only=True) | {
        "extra": Malicious(f"touch {proof}")
    }
    if form == "torch":
        torch.save(content, bad)
    else:
        bad.write_bytes(pickle.dumps(content))
    fails(
        capsys,
        cli.evaluate,
        ["-c", grid, "--checkpoint", bad, "--output", output],
        "checkpoint",
        "refused",
    )
    fails(
        capsys,
        cli.train,
        ["fit", "-c", experiment, "--ckpt_path", bad, "--output", output],
        "checkpoint",
        "refused",
    )
    assert not proof.exists()
    assert not output.exists()
    with bad.open("rb") as file:  # the file does what it threatens where it is trusted
        torch.load(file, weights_only=False) if form == "torch" else pickle.load(file)
    assert proof.exists()


def test_weights_alone_cannot_be_resumed(capsys, experiment, trained_run, tmp_path):
    weights = tmp_path / "weights.pt"
    torch.save(torch.load(trained_run / "last.ckpt", weights_only=True)["state_dict"], weights)
    arguments = ["fit", "-c", experiment, "--ckpt_path", weights, "--output", tmp_path / "run"]
    fails(capsys, cli.train, arguments, "ckpt_path", "optimizer_states")
    assert not (tmp_path / "run").exists()


def test_resuming_another_network(capsys, experiment, trained_run, tmp_path):
    last = trained_run / "last.ckpt"
    arguments = [
        "fit",
        "-c",
        experiment,
        "--net.width",
        2,
        "--ckpt_path",
        last,
        "--output",
        tmp_path / "run",
    ]
    fails(capsys, cli.train, arguments, "checkpoint", str(last), "another network")
    assert not (tmp_path / "run").exists()


def test_a_file_of_weights_says_not_which_network_it_is(capsys, grid, tmp_path):
    torch.save(WideResNet(10, 1, 4).state_dict(), tmp_path / "weights.pt")
    arguments = ["-c", grid, "--checkpoint", tmp_path / "weights.pt", "--output", tmp_path / "out"]
    fails(capsys, cli.evaluate, arguments, "net", "weights.pt")


IMAGES = np.zeros((8, 16, 16, 3), np.uint8)
BAD_ARRAYS = {
    "rank 3": ({"images": IMAGES[0], "labels": np.zeros(16, int)}, "shape"),
    "rank 5": ({"images": IMAGES[None]}, "shape"),
    "two channels": ({"images": IMAGES[..., :2]}, "(N, height, width, 3)"),
    "channels first": ({"images": IMAGES.transpose(0, 3, 1, 2)}, "(N, height, width, 3)"),
    "int64": ({"images": IMAGES.astype(np.int64)}, "int64"),
    "unit floats": ({"images": IMAGES / 255}, "float64"),
    "NaN": ({"images": np.full((8, 16, 16, 3), np.nan, np.float32)}, "NaN"),
    "empty": ({"images": IMAGES[:0], "labels": np.zeros(0, int)}, "no images"),
    "no images": ({"pictures": IMAGES}, "images"),
    "label too large": ({"images": IMAGES, "labels": np.arange(8)}, "labels"),
    "label negative": ({"images": IMAGES, "labels": np.arange(8) - 3}, "got -3"),
    "labels of floats": ({"images": IMAGES, "labels": np.zeros(8)}, "labels"),
    "fewer labels": ({"images": IMAGES, "labels": np.zeros(5, int)}, "labels"),
    "no labels": ({"images": IMAGES}, "labels"),
    "pickled objects": ({"images": np.array([None, {}], dtype=object)}, "bad"),
}


@pytest.mark.parametrize("kind", [*BAD_ARRAYS, "truncated", "text"])
def test_a_bad_array(capsys, experiment, grid, trained_run, tmp_path, kind):
    path = tmp_path / "bad.npz"
    said = "bad"
    if kind in BAD_ARRAYS:
        content, said = BAD_ARRAYS[kind]
        np.savez(path, **content)
    elif kind == "truncated":
        np.savez(path, images=IMAGES)
        path.write_bytes(path.read_bytes()[:-300])
    else:
        path.write_text("a bad file")
    output = tmp_path / "out"
    for command, part, arguments in (
        (cli.train, "train", ["fit", "-c", experiment]),
        (cli.evaluate, "test", ["-c", grid, "--checkpoint", trained_run / "last.ckpt"]),
    ):
        capsys.readouterr()
        assert (
            command([str(a) for a in [*arguments, f"--data.{part}", path, "--output", output]]) == 2
        )
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: data.{part}: bad: ")
        assert said in line
    assert not output.exists()


@pytest.mark.parametrize("content", ["a text", "source: svhn", "[1, 2]"])
def test_a_file_that_data_names_is_not_read_as_a_config(
    capsys, monkeypatch, experiment, tmp_path, content
):
    """Neither from the working folder, where the name alone finds it."""
    monkeypatch.chdir(tmp_path)
    Path("x.npz").write_text(content)
    arguments = [
        "fit",
        "-c",
        experiment,
        "--data.root",
        ".",
        "--data.train",
        "x.npz",
        "--output",
        "out",
    ]
    fails(
        capsys,
        cli.train,
        arguments,
        "data.train",
        "x: x.npz is not a readable .npz file",
        "not a zip archive",
    )
    assert os.listdir(tmp_path) == ["x.npz"]


@pytest.mark.parametrize("part", ["train", "validation", "outliers", "near", "far"])
def test_what_is_wrong_with_a_set_names_its_field(
    capsys, experiment, grid, trained_run, tmp_path, part
):
    np.savez(tmp_path / "bad.npz", images=IMAGES[..., :2], labels=np.zeros(8, int))
    value = (
        tmp_path / "bad.npz"
        if part in ("train", "validation", "outliers")
        else f"[{tmp_path / 'bad.npz'}]"
    )
    output = ["--output", tmp_path / "out"]
    if part in ("near", "far"):
        command, arguments = cli.evaluate, ["-c", grid, "--checkpoint", trained_run / "last.ckpt"]
    else:
        command, arguments = cli.train, ["fit", "-c", experiment]
    fails(
        capsys,
        command,
        [*arguments, *output, f"--data.{part}", value],
        f"data.{part}",
        "bad: expected images of shape",
    )


def test_outliers_that_are_also_a_test_are_refused_unless_forced(capsys, experiment, tmp_path):
    same = ["fit", "-c", experiment, "--data.far", "[outliers.npz]", "--output", tmp_path / "out"]
    fails(
        capsys,
        cli.train,
        same,
        "data.far",
        "outliers.npz is also in data.outliers",
        "data.allow_overlap: true",
    )
    arguments = [*same, "--data.allow_overlap", "true", "--trainer.max_steps", "1"]
    assert cli.train([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize("place", ["a file", "below a file", "/proc/robust_ood"])
def test_an_output_that_cannot_be_written(capsys, experiment, grid, trained_run, tmp_path, place):
    file = tmp_path / "file"
    file.write_text("kept")
    output = {"a file": file, "below a file": file / "run"}.get(place, Path(place))
    for command, arguments in (
        (cli.train, ["fit", "-c", experiment]),
        (cli.evaluate, ["-c", grid, "--checkpoint", trained_run / "last.ckpt"]),
    ):
        fails(
            capsys, command, [*arguments, "--output", output], "output", str(output), "cannot write"
        )
    assert file.read_text() == "kept"


def test_results_and_runs_that_exist_survive_a_mistake(capsys, experiment, grid, own_run, tmp_path):
    (own_run / "results.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in own_run.iterdir()}
    arguments = ["-c", grid, "--checkpoint", own_run / "last.ckpt", "--output", own_run]
    fails(capsys, cli.evaluate, [*arguments, "--detectors", "[mspp]"], "detectors")
    fit = ["fit", "-c", experiment, "--output", own_run]
    fails(capsys, cli.train, fit, "output")
    fails(
        capsys, cli.train, [*fit, "--replace", "true", "--data.outliers", "null"], "data.outliers"
    )
    fails(capsys, cli.train, [*fit, "--replace", "true", "--data.batch_size", 999], "batch_size")
    assert {path.name: path.read_bytes() for path in own_run.iterdir()} == before


def test_bugs_are_not_hidden(monkeypatch, experiment, tmp_path):
    """Only a user's mistakes become one line: an error of the program keeps its traceback."""
    monkeypatch.setattr("robust_ood.data.module.load_set", lambda *_: {}["bug"])
    with pytest.raises(KeyError):
        cli.train(["fit", "-c", str(experiment), "--output", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("script", "arguments", "field"),
    [
        ("train.py", ["fit", "-c", "configs/experiments/digits_aloe.yaml", "--data.batchsize", "3"], "data.batchsize"),
        ("evaluate.py", ["-c", "configs/evaluate/digits.yaml", "--checkpoint", "/nowhere.ckpt"], "checkpoint"),
    ],
)  # fmt: skip
def test_the_scripts_themselves(tmp_path, script, arguments, field):
    command = [sys.executable, ROOT / script, *arguments, "--output", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {field}: ")
    assert os.listdir(tmp_path) == []


def test_empty_sections_of_a_config_mean_their_default(experiment, tmp_path):
    config = tmp_path / "empty.yaml"
    sections = ["trainer", "data", "guards", "checkpoints", "averaging", "robust_validation"]
    config.write_text("".join(f"{name}:\n" for name in [*sections, "include"]))
    arguments = ["fit", "-c", experiment, "-c", config, "--output", tmp_path / "run"]
    assert cli.train([*map(str, arguments), "--trainer.max_steps", "1"]) == 0


def test_a_learning_rate_alone_is_that_of_the_default_optimiser(experiment, tmp_path):
    config = tmp_path / "rate.yaml"
    config.write_text("model: {init_args: {optimization: {learning_rate: null}}}")
    arguments = ["fit", "-c", experiment, "-c", config, "--output", tmp_path / "run"]
    options = ["--model.optimization.optimizer.lr", "0.03", "--trainer.max_steps", "1"]
    assert cli.train([*map(str, arguments), *options]) == 0
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    (group,) = last["optimizer_states"][0]["param_groups"]
    assert group["initial_lr"] == 0.03
    assert group["momentum"] == 0.9


def test_without_detectors_the_classifier_is_evaluated(grid, trained_run, tmp_path):
    output = tmp_path / "out"
    arguments = ["-c", grid, "--checkpoint", trained_run / "last.ckpt", "--output", output]
    assert cli.evaluate([*map(str, arguments), "--detectors", "[]"]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["rows"] == []
    assert {row["attack"] for row in results["classification"]} == {"none", "pgd-8/255"}


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "x"}, {"WORLD_SIZE": "2", "RANK": "1"}])
def test_variables_of_no_launcher(capsys, monkeypatch, experiment, grid, tmp_path, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    output = ["--output", tmp_path / "out"]
    fails(capsys, cli.train, ["fit", "-c", experiment, *output], "WORLD_SIZE")
    fails(capsys, cli.evaluate, ["-c", grid, *output], "WORLD_SIZE")
