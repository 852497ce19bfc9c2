"""Runs that are asked to stop, lose their newest checkpoint, begin from weights, or are resumed
under other settings.
"""

from __future__ import annotations

import os
import signal

import pytest
import torch

from robust_ood import cli
from robust_ood.callbacks import Checkpoints

STEP = 5


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def same(first, second):
    return all(
        torch.equal(weights(first / "last.ckpt")[key], value)
        for key, value in weights(second / "last.ckpt").items()
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_ends_in_a_checkpoint_that_continues(
    capsys, monkeypatch, experiment, trained_run, tmp_path, signum
):
    """It comes in the middle of a step, whose end it waits for."""

    def interrupt(self, trainer, *_):
        if trainer.global_step == STEP - 1:
            os.kill(os.getpid(), signum)

    folder = tmp_path / "run"
    fit = ["fit", "-c", str(experiment), "--output", str(folder)]
    before = signal.getsignal(signum)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "on_train_batch_start", interrupt)
        assert cli.train(fit) == 128 + signum
    said = capsys.readouterr().err.splitlines()
    name = signal.Signals(signum).name
    wrote = f"stopped by {name} after step {STEP}; wrote {folder / 'last.ckpt'}; continue with --ckpt_path last"
    assert said == [wrote]
    assert signal.getsignal(signum) == before
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == STEP
    assert cli.train([*fit, "--ckpt_path", "last"]) == 0
    assert same(folder, trained_run)
    assert (folder / "metrics.csv").read_text() == (trained_run / "metrics.csv").read_text()


def test_a_truncated_newest_checkpoint_is_done_without(capsys, experiment, trained_run, tmp_path):
    folder = tmp_path / "run"
    fit = [
        "fit",
        "-c",
        str(experiment),
        "--output",
        str(folder),
        "--checkpoints.every_n_steps",
        "3",
    ]
    assert cli.train(fit) == 0
    newest, older = folder / "last.ckpt", folder / "last-1.ckpt"
    steps = [torch.load(path, weights_only=True)["global_step"] for path in (newest, older)]
    assert steps == [8, 6]
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    assert cli.train([*fit, "--ckpt_path", "last"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"warning: checkpoint: {newest} ")
    assert f"continuing from {older} (step 6) instead" in said
    assert same(folder, trained_run)


def test_nothing_to_continue_from_where_all_are_truncated(capsys, experiment, own_run):
    for name in ("last.ckpt", "last-1.ckpt"):
        (own_run / name).write_bytes(b"PK")
    fit = ["fit", "-c", str(experiment), "--output", str(own_run), "--ckpt_path", "last"]
    capsys.readouterr()
    assert cli.train(fit) == 2
    assert capsys.readouterr().err.startswith(f"error: checkpoint: {own_run / 'last.ckpt'} ")


def test_fine_tuning_begins_with_the_given_weights(experiment, trained_run, tmp_path):
    given = weights(trained_run / "last.ckpt")
    folder = tmp_path / "run"
    tune = [
        "fit",
        "-c",
        str(experiment),
        "--output",
        str(folder),
        "--init_from",
        str(trained_run / "last.ckpt"),
    ]
    tune += ["--trainer.max_steps", "1", "--model.optimization.learning_rate", "1e-12"]
    assert cli.train(tune) == 0
    tuned = torch.load(folder / "last.ckpt", weights_only=True)
    assert tuned["global_step"] == 1  # a run of its own
    learned = [name for name in given if name.endswith((".weight", ".bias"))]
    for name in learned:
        torch.testing.assert_close(tuned["state_dict"][name], given[name], rtol=1e-6, atol=1e-9)


def test_another_method_can_fine_tune(experiment, trained_run, tmp_path):
    """As the safe spots paper's outlier objective does with an adversarially trained network."""
    config = tmp_path / "tune.yaml"
    config.write_text(
        experiment.read_text().replace("methods/aloe.yaml", "methods/safe_spot_outliers.yaml")
    )
    tune = [
        "fit",
        "-c",
        str(config),
        "--init_from",
        str(trained_run / "last.ckpt"),
        "--trainer.max_steps",
        "1",
    ]
    assert cli.train([*tune, "--output", str(tmp_path / "run")]) == 0
    assert (
        torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["method"] == "SafeSpotAware"
    )


def test_a_fine_tuned_run_goes_on_with_its_own_config(experiment, trained_run, tmp_path):
    folder = tmp_path / "run"
    arguments = [
        "fit",
        "-c",
        str(experiment),
        "--output",
        str(folder),
        "--init_from",
        str(trained_run / "last.ckpt"),
    ]
    assert cli.train([*arguments, "--trainer.max_steps", "2"]) == 0
    tuned = weights(folder / "last.ckpt")
    assert cli.train(["fit", "-c", str(folder / "config.yaml"), "--ckpt_path", "last"]) == 0
    assert all(
        torch.equal(value, tuned[name]) for name, value in weights(folder / "last.ckpt").items()
    )
    assert cli.train(["test", "-c", str(folder / "config.yaml"), "--ckpt_path", "last"]) == 0


def test_a_run_goes_on_under_the_new_settings_where_that_is_wanted(experiment, own_run):
    changed = [
        "--model.optimization.learning_rate",
        "0.01",
        "--model.optimization.schedule",
        "constant",
    ]
    changed += ["--model.optimization.weight_decay", "0.3", "--resume_changed", "true"]
    before = torch.load(own_run / "last.ckpt", weights_only=True)["global_step"]
    arguments = ["fit", "-c", str(experiment), "--output", str(own_run), "--ckpt_path", "last"]
    longer = ["--trainer.max_steps", str(before + 1), "--trainer.max_epochs", "99"]
    assert cli.train([*arguments, *changed, *longer]) == 0
    content = torch.load(own_run / "last.ckpt", weights_only=True)
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.3)
    assert content["lr_schedulers"][0]["base_lrs"] == [0.01]
    assert "resume_changed" not in (own_run / "config.yaml").read_text()


def test_a_mistake_leaves_the_config_of_an_older_run_alone(capsys, experiment, own_run):
    before = (own_run / "config.yaml").read_text()
    wrong = ["--robust_validation.detectors", "[msp]", "--data.batch_size", "8"]
    assert cli.train(["fit", "-c", str(experiment), "--output", str(own_run), *wrong]) == 2
    assert (own_run / "config.yaml").read_text() == before


def test_a_new_run_leaves_no_curves_of_the_old_one(experiment, own_run):
    old = {path.name for path in own_run.glob("events.out.tfevents.*")}
    assert cli.train(["fit", "-c", str(experiment), "--output", str(own_run), "--trainer.max_steps", "1",
                      "--replace", "true"]) == 0  # fmt: skip
    new = {path.name for path in own_run.glob("events.out.tfevents.*")}
    assert old
    assert new
    assert not old & new


def test_resuming_under_other_settings_names_them_all(capsys, experiment, own_run):
    changed = [
        "--model.optimization.learning_rate",
        "0.01",
        "--data.batch_size",
        "8",
        "--data.reading.workers",
        "1",
    ]
    changed += ["--data.reading.on_device", "false"]
    arguments = [
        "fit",
        "-c",
        str(experiment),
        "--output",
        str(own_run),
        "--ckpt_path",
        "last",
        *changed,
    ]
    before = (own_run / "last.ckpt").read_bytes()
    assert cli.train(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.batch_size (was 16, now 8)" in line
    assert "model.init_args.optimization.learning_rate (was 0.05, now 0.01)" in line
    assert line.endswith("give --resume_changed true to go on with the new ones")
    assert "workers" not in line  # they change nothing that is computed
    assert "on_device" not in line
    assert line.count("(was ") == 2
    assert (own_run / "last.ckpt").read_bytes() == before
