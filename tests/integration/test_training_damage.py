"""Damaged runs: each is continued exactly or refused in one line that names what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robust_ood import cli

PARTS = (
    "state_dict",
    "loops",
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "OODData",
    "epoch",
    "global_step",
    "pytorch-lightning_version",
)


@pytest.fixture(scope="module")
def killed_run(experiment, tmp_path_factory):
    """A run of which only the checkpoint of step 6 of 8 is left."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    fit = ["fit", "-c", str(experiment), "--output", str(folder)]
    assert cli.train([*fit, "--checkpoints.every_n_steps", "3"]) == 0
    (folder / "last-1.ckpt").replace(folder / "last.ckpt")
    return folder


@pytest.fixture
def own_run(killed_run, tmp_path):
    """A copy of the killed run, to be changed."""
    return Path(shutil.copytree(killed_run, tmp_path / "killed"))


def resume(capsys, experiment, folder, checkpoint="last"):
    """Return the exit code and the lines that the command says."""
    capsys.readouterr()
    fit = ["fit", "-c", str(experiment), "--output", str(folder)]
    code = cli.train([*fit, "--ckpt_path", str(checkpoint)])
    return code, capsys.readouterr().err.splitlines()


def contents(path):
    return torch.load(path, weights_only=True)


def same_weights(first, second):
    expected = contents(second / "last.ckpt")["state_dict"]
    state = contents(first / "last.ckpt")["state_dict"]
    return all(torch.equal(state[name], value) for name, value in expected.items())


def flip(path, share):
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 8
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(
    capsys, experiment, trained_run, tmp_path, share
):
    folder = tmp_path / "run"
    fit = ["fit", "-c", str(experiment), "--output", str(folder)]
    assert cli.train([*fit, "--checkpoints.every_n_steps", "3"]) == 0
    flip(folder / "last.ckpt", share)
    code, said = resume(capsys, experiment, folder)
    assert code == 0
    assert said[0].startswith(f"warning: checkpoint: {folder / 'last.ckpt'} is damaged")
    assert "last-1.ckpt (step 6) instead" in said[0]
    assert same_weights(folder, trained_run)


def test_a_flipped_bit_in_a_named_checkpoint_is_an_error(capsys, experiment, own_run):
    flip(own_run / "last.ckpt", 0.5)
    code, said = resume(capsys, experiment, own_run, own_run / "last.ckpt")
    assert code == 2
    assert len(said) == 1
    assert "checksum" in said[0]


def emptied(value):
    return type(value)() if isinstance(value, dict | list) else None


def inner_emptied(value):
    """Empty the first mapping that is not empty within a part."""
    if isinstance(value, list):
        return [inner_emptied(value[0]), *value[1:]]
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            return {**value, name: {}}
    return {}


CHANGES = {
    "missing": None,
    "emptied": emptied,
    "null": lambda value: None,
    "a text": lambda value: "garbage",
    "a list": lambda value: [3],
    "negative": lambda value: -1,
    "emptied within": inner_emptied,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_part_that_is_damaged_is_named(capsys, experiment, own_run, change):
    whole = contents(own_run / "last.ckpt")
    for part in PARTS:
        content = dict(whole)
        if change == "missing":
            del content[part]
        elif change == "emptied within" and not isinstance(whole[part], dict | list):
            continue
        else:
            content[part] = CHANGES[change](whole[part])
        torch.save(content, own_run / "last.ckpt")
        code, said = resume(capsys, experiment, own_run)
        assert code == 2, part
        assert len(said) == 1, said
        # Weights are found wherever a file has them, and named by what the network lacks.
        assert part in said[0] or "weights" in said[0] or "another network" in said[0]


@pytest.mark.parametrize("part", ["best", "rows", "pending"])
def test_garbage_in_the_callbacks_state_is_one_line(capsys, experiment, own_run, part):
    content = contents(own_run / "last.ckpt")
    content["callbacks"]["Checkpoints"][part] = "garbage"
    torch.save(content, own_run / "last.ckpt")
    code, said = resume(capsys, experiment, own_run)
    assert code == 2
    assert len(said) == 1
    assert "callbacks" in said[0]


def test_what_only_lightning_finds_is_one_line(capsys, experiment, own_run):
    content = contents(own_run / "last.ckpt")
    content["optimizer_states"][0]["param_groups"] = [{"lr": 1.0}]
    del content["sizes"]  # as of a release that did not count
    torch.save(content, own_run / "last.ckpt")
    code, said = resume(capsys, experiment, own_run)
    assert code == 2
    assert len(said) == 1
    assert said[0].startswith("error: ckpt_path: ")


def test_a_checkpoint_of_an_older_release_continues(capsys, experiment, own_run, trained_run):
    content = contents(own_run / "last.ckpt")
    del content["sizes"]
    torch.save(content, own_run / "last.ckpt")
    code, _ = resume(capsys, experiment, own_run)
    assert code == 0
    assert same_weights(own_run, trained_run)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x00\x01\x02",
        b"\xff\xfe garbage\n" * 40,
        b"epoch,step\n" + b"1,2,3,4\n" * 40,
        b"epoch,step,a\n" + b"x,y,z\n" * 40,
        b"epoch,step,a\n0,0,1.0\n",
    ],
)
def test_garbage_in_the_metrics_file_is_one_line(capsys, experiment, own_run, garbage):
    (own_run / "metrics.csv").write_bytes(garbage)
    code, said = resume(capsys, experiment, own_run)
    assert code == 2
    assert len(said) == 1
    assert said[0].startswith(f"error: output: {own_run / 'metrics.csv'} is damaged")
    assert (own_run / "metrics.csv").read_bytes() == garbage


def test_a_run_does_not_need_the_temporary_folder(experiment, trained_run, tmp_path):
    nowhere = tmp_path / "full"
    nowhere.mkdir()
    nowhere.chmod(0o500)
    folder = tmp_path / "run"
    code = f"""
import sys, tempfile
def refuse(*_, **__):
    raise OSError(28, "No space left on device")
tempfile.mkstemp = tempfile.NamedTemporaryFile = refuse
from robust_ood.cli import train
sys.exit(train(["fit", "-c", {str(experiment)!r}, "--output", {str(folder)!r}]))
"""
    environment = {**os.environ, "TMPDIR": str(nowhere)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert same_weights(folder, trained_run)
    assert not list(folder.glob(".*.partial"))


def test_partial_files_of_a_killed_run_are_removed(capsys, experiment, own_run):
    for name in (".last.ckpt.partial", ".last.ckpt.ab12.partial", ".metrics.csv.17.partial"):
        (own_run / name).write_text("half")
    code, _ = resume(capsys, experiment, own_run)
    assert code == 0
    assert not list(own_run.glob(".*.partial"))
