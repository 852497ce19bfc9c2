"""Where `-c configs/...` is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_ood.cli import main
from robust_ood.cli.configs import find_config, with_includes
from robust_ood.errors import UserError

NAME = Path("configs/experiments/digits_aloe.yaml")


def test_the_package_s_own_config_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = with_includes(["fit", "-c", str(NAME)])
    files = [
        Path(value) for flag, value in zip(found[1::2], found[2::2], strict=True) if flag == "-c"
    ]
    assert [file.name for file in files] == [
        "digits.yaml",
        "digits.yaml",
        "wrn_10_1.yaml",
        "robust_validation_small.yaml",
        "digits_aloe.yaml",
    ]
    assert all(file.is_file() for file in files)


def test_a_file_in_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    NAME.parent.mkdir(parents=True)
    NAME.write_text("experiment: mine")
    assert find_config(NAME) == NAME


def files_named(arguments):
    return [Path(value) for value in arguments if value.endswith(".yaml")]


def test_a_config_includes_the_package_s_own_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("include: [configs/data/digits.yaml]")
    included, mine = files_named(with_includes(["-c", "mine.yaml"]))
    assert included.is_file()
    assert included.parts[-3:] == ("configs", "data", "digits.yaml")
    assert mine == Path("mine.yaml")


def test_an_included_file_beside_the_config_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = Path("folder/configs/data/digits.yaml")
    beside.parent.mkdir(parents=True)
    beside.write_text("data: {seed: 3}")
    Path("folder/mine.yaml").write_text("include: [configs/data/digits.yaml]")
    included, _ = files_named(with_includes(["-c", "folder/mine.yaml"]))
    assert included == beside


def test_an_included_file_that_is_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("include: [configs/data/no.yaml]")
    with pytest.raises(UserError, match=r"config: cannot read configs/data/no\.yaml"):
        with_includes(["-c", "mine.yaml"])


@pytest.mark.parametrize("name", ["configs/experiments/no.yaml", "experiments/digits_aloe.yaml"])
def test_what_is_nowhere_is_named_as_it_was_given(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"config: cannot read {name}"):
        with_includes(["-c", name])


@pytest.mark.parametrize(
    "given", [["-c", "it.yaml"], ["-cit.yaml"], ["-c=it.yaml"], ["--config=it.yaml"]]
)
def test_includes_are_read_however_the_file_is_attached(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    Path("it.yaml").write_text("include: [base.yaml]")
    Path("base.yaml").write_text("limit: 3")
    assert with_includes(["fit", *given, "--a", "b"]) == [
        "fit",
        "-c",
        "base.yaml",
        "-c",
        "it.yaml",
        "--a",
        "b",
    ]


@pytest.mark.parametrize(("command", "words"), [("train", ["fit"]), ("evaluate", [])])
def test_a_shortened_option_is_refused_because_its_includes_would_not_be_read(
    tmp_path, monkeypatch, capsys, command, words
):
    monkeypatch.chdir(tmp_path)
    Path("it.yaml").write_text("include: [base.yaml]")
    assert main([command, *words, "--conf", "it.yaml"]) == 2
    assert capsys.readouterr().err == "error: conf: unknown setting; did you mean 'config'?\n"
