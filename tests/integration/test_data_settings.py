"""Mistakes in the settings of sets, through the commands: exit code 2 and one line with the key."""

from __future__ import annotations

import pytest

from robust_ood import cli

SETS = [
    ("count: 0", "count", "expected a number of images >= 1, got 0"),
    ("size: -3", "size", "expected a number of pixels >= 1, got -3"),
    ("max_unreadable: 2", "max_unreadable", "expected a share in [0, 1], got 2"),
    ("shorter: 20, policy: stretch", "shorter", "only policy 'resize' has it"),
    ("polcy: stretch", "polcy", "did you mean 'policy'?"),
    ("channels: 4", "channels", "expected one of 1, 3 or null"),
    ("bits: 99", "bits", "expected a number of bits of a value <= 16"),
    ('exclude: ""', "exclude", "is empty"),
    ("policy: [1]", "policy", "expected one of resize"),
]


@pytest.mark.parametrize(("settings", "key", "said"), SETS)
@pytest.mark.parametrize("form", ["short", "long"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("place", ["config", "option"])
def test_the_whole_key_is_named(
    experiment, grid, tmp_path, capsys, settings, key, said, form, command, place
):
    spec = f"{{source: far.npz, {settings}}}"
    if form == "long":
        spec = (
            "{class_path: robust_ood.data.SetSpec, init_args: {source: far.npz, %s}}" % settings  # noqa: UP031
        )
    given = f"--data.far=[near.npz, {spec}]"
    options = [given]
    if place == "config":
        (tmp_path / "sets.yaml").write_text(f"data:\n  far:\n  - near.npz\n  - {spec}\n")
        options = ["-c", str(tmp_path / "sets.yaml")]
    check(capsys, command, experiment, grid, tmp_path, options, f"data.far[1].{key}", said)


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("option", "field", "said"),
    [
        ("--data.near=[3]", "data.near", "expected"),
        ("--data.near=svhn", "data.near", "expected a list"),
        ("--data.train={source: x, count: 0}", "data.train.count", "expected a number of images"),
        ("--data.train=", "data.train", "is empty"),
        ("--data.root=", "data.root", "is empty"),
        ("--data.channels=2", "data.channels", "expected one of 1, 3"),
        ("--data.outlier_batch_size=99999999", "data.outlier_batch_size", "<= 1048576"),
        ("--data.evaluation_batch_size=1000000000000", "data.evaluation_batch_size", "<= 1048576"),
        ("--data.size=1000000", "data.size", "<= 16384"),
        ("--data.reading.memory_limit=-1", "data.reading.memory_limit", ">= 0"),
    ],
)
def test_other_fields_of_data(experiment, grid, tmp_path, capsys, command, option, field, said):
    check(capsys, command, experiment, grid, tmp_path, [option], field, said)


def check(capsys, command, experiment, grid, tmp_path, options, field, said):
    output = tmp_path / "output"
    capsys.readouterr()
    if command == "train":
        code = cli.train(["fit", "-c", str(experiment), *options, f"--output={output}"])
    else:
        nothing = f"--checkpoint={tmp_path / 'none.ckpt'}"
        code = cli.evaluate(["-c", str(grid), nothing, *options, f"--output={output}"])
    shown = capsys.readouterr()
    assert code == 2
    (line,) = shown.err.splitlines()
    assert line.startswith(f"error: {field}"), line
    assert said in line
    assert not output.exists()
