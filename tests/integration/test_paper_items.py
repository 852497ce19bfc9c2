"""`robust-ood paper`: every item in its small form, and the commands of its form as published.

The items share one output folder, so that each network is trained once. Trainings take two steps
on digits of 8 x 8 pixels: what a minute of training gives is no test's business.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from robust_ood import cli
from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.configs import with_includes
from robust_ood.cli.papers.items import Item, Recipe, find_item, item_files, read_item
from robust_ood.cli.papers.plan import Plan, read_variables, templates
from robust_ood.cli.papers.running import is_finished

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

ITEMS = [(paper, name) for paper, files in item_files().items() for name in files]
SHORT = {
    "steps": "2",
    "limit": "10",
    "size": "8",
    "attack_steps": "1",
    "far": "[photographs/test]",
    "detectors": "[msp]",
    "searched": "[{name: knn, ranges: {neighbours: [1, 60]}}, "
    "{name: pro-msp, steps: 1, ranges: {step_size: [0.001]}}]",
    "search_steps": "2",
    "draws": "20",
    "encoder_steps": "2",
    "images": "6",
    "curve_steps": "2",
    "tower_steps": "20",
    "starts": "[noise]",
}
"""What makes an item short, of those variables that it has."""


def short(paper: str, name: str) -> list[str]:
    """Return the variables of an item that make it short."""
    variables = find_item(paper, name).recipes["small"].variables
    return [f"{key}={value}" for key, value in SHORT.items() if key in variables]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("papers")


@pytest.mark.parametrize(("paper", "name"), ITEMS, ids=[" ".join(item) for item in ITEMS])
def test_an_item_in_its_small_form(paper, name, output, capsys):
    arguments = ["paper", paper, name, "--output", str(output)]
    variables = short(paper, name)
    if variables:
        arguments += ["--set", *variables]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    page = (output / "small" / f"{paper}-{name}.md").read_text()
    item = find_item(paper, name)
    assert item.title in page
    if item.draw:
        assert list((output / "small" / f"{paper}-{name}").glob("*.png"))
    if not item.draw or item.printed:
        assert "| here |" in page or " here |" in page
    # What is finished is not computed again, by this item or by another.
    plan = Plan(item, "small", output, given=read_variables(variables))
    assert all(is_finished(plan, step) for step in plan.steps())


def test_a_finished_item_is_shown_again_and_not_computed_again(output, capsys):
    arguments = ["paper", "encoder", "figure-3", "--output", str(output)]
    arguments += ["--set", *short("encoder", "figure-3")]
    assert cli.main(arguments) == 0
    capsys.readouterr()
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.count(": finished before") == 2


@pytest.mark.parametrize(("paper", "name"), ITEMS, ids=[" ".join(item) for item in ITEMS])
def test_the_commands_of_an_item_as_published_are_read(paper, name, tmp_path, capsys):
    assert cli.main(["paper", paper, name, "--size", "paper", "--plan", "true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("robust-ood ") for line in lines)
    item = find_item(paper, name)
    plan = Plan(item, "paper", tmp_path)
    assert set(plan.missing()) <= {"root", *item.recipes["paper"].needs}


# --- what is shared, resumed and refused


def item_of(steps: dict, reads: list[str], **recipe) -> Item:
    made = Recipe(reads, steps, **recipe)
    return Item("aloe", "table-1", "a title", {"small": made, "paper": made})


def test_steps_come_after_those_that_they_name_and_once_for_each_value(tmp_path):
    steps = {
        "last": {"run": "evaluate --models '${files}' --limit ${limit}"},
        "net-<method>": {"each": {"method": ["oe", "aloe"]}, "run": "train fit -c <method>.yaml"},
        "other": {"run": "train fit"},
    }
    files = "{OE: ${net-oe}/last.ckpt, ALOE: ${net-aloe}/last.ckpt}"
    item = item_of(steps, ["last"], variables={"files": files, "limit": 3})
    plan = Plan(item, "small", tmp_path, given={"limit": "7"})
    first, second, last = plan.steps()
    assert [step.name for step in plan.steps()] == ["net-oe", "net-aloe", "last"]
    assert first.arguments == ("fit", "-c", "oe.yaml", "--output", str(tmp_path / "small/net-oe"))
    assert second.arguments[2] == "aloe.yaml"
    assert f"ALOE: {tmp_path / 'small/net-aloe'}/last.ckpt" in last.arguments[1]
    assert last.arguments[3] == "7"


def test_what_is_needed_is_said_before_anything_runs(tmp_path, capsys):
    for arguments, words in (
        (["aloe", "table-1"], ["root: not given", "300k-random"]),
        (["aloe", "table-1", "--root", str(tmp_path)], ["robust-ood data download"]),
        (
            ["pro", "table-1", "--root", str(tmp_path)],
            ["set: openood has no value", "release v1.5"],
        ),
        (
            ["pro", "table-1", "--root", str(tmp_path), "--set", f"openood={tmp_path / 'no'}"],
            ["set: openood: no such file or folder", "release v1.5"],
        ),
        (
            ["pro", "table-1", "--root", str(tmp_path), "--set", f"openood={tmp_path}"],
            ["root: no benchmark_imglist", "scripts/download/download.py"],
        ),
    ):
        output = tmp_path / "out"
        command = ["paper", *arguments, "--size", "paper", "--output", str(output)]
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert all(word in error for word in words), error
        assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["alo", "table-1"], ["paper: unknown name 'alo'", "did you mean 'aloe'"]),
        (["aloe", "table-11"], ["item: unknown name 'table-11'", "did you mean 'table-1'"]),
        (["aloe"], ["item: not given", "table-1"]),
        (["aloe", "table-1", "--set", "limits=3"], ["set: unknown name 'limits'", "'limit'"]),
        (["aloe", "table-1", "--set", "limit"], ["set: expected NAME=VALUE, got 'limit'"]),
        (["aloe", "table-1", "--size", "tiny"], ["size: expected", "small"]),
    ],
)
def test_a_mistake_is_one_line(arguments, words, capsys):
    assert cli.main(["paper", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(word in error for word in words), error


def test_the_list_has_every_item_and_what_it_needs(capsys):
    assert cli.main(["paper", "list"]) == 0
    text = capsys.readouterr().out
    for paper, name in ITEMS:
        assert f"{paper} {name}: " in text
    assert text.count("    small: ") == text.count("    paper: ") == len(ITEMS)
    assert "    paper: 15 train, 3 evaluate; data 300k-random" in text
    assert "--set openood" in text


def test_files_have_no_setting_that_is_not_known():
    for files in item_files().values():
        for path in files.values():
            item = read_item(path)
            for recipe in item.recipes.values():
                assert set(recipe.needs).isdisjoint(recipe.variables)


def is_missing(argument: str) -> bool:
    """Return whether an argument names a config of this project that is not there."""
    return argument.startswith("configs/") and not Path(argument).is_file()


def parse(command: str, arguments: list[str]) -> None:
    """Read a step's settings as its command does, without data, weights and networks."""
    if command == "train":
        assert cli.main(["train", *arguments, "--print_config"]) == 0
    elif command != "benchmark":
        module = import_module(f"robust_ood.cli.{command.replace('-', '_')}_command")
        parse_arguments(module.parser(), with_includes(arguments))


@pytest.mark.parametrize("paper", item_files())
def test_the_settings_of_all_steps_as_published_are_known(paper, tmp_path, capsys):
    """Of steps that differ by a value alone, the first one is read; their files are there."""
    seen = set()
    for path in item_files()[paper].values():
        item = read_item(path)
        plan = Plan(item, "paper", tmp_path, tmp_path)
        template_of = templates(item.recipes["paper"])
        for step in plan.steps():
            assert [name for name in step.arguments if is_missing(name)] == []
            if template_of[step.name] in seen:
                continue
            seen.add(template_of[step.name])
            arguments = list(step.arguments)
            # The chosen settings are files of a step before.
            for place, argument in enumerate(arguments):
                if argument.endswith("detectors.yaml"):
                    arguments[place] = "configs/data/digits.yaml"
            parse(step.command, arguments)
    assert seen
