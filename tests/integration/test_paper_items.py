"""`robust-ood paper`: every item in its small form, and the commands of its form as published.

The items share one output folder, so that each network is trained once. Trainings take two steps
on digits of 8 x 8 pixels: what a minute of training gives is no test's business.
"""

from __future__ import annotations

import pytest

from robust_ood import cli
from robust_ood.cli.papers.items import Item, Recipe, find_item, item_files, read_item
from robust_ood.cli.papers.plan import Plan

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
    # What is finished is not computed again.
    assert cli.main(arguments) == 0
    finished = capsys.readouterr().out.count(": finished before")
    assert finished >= len(Plan(item, "small", output).steps())


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
    assert "--size paper needs 300k-random" in text


def test_files_have_no_setting_that_is_not_known():
    for files in item_files().values():
        for path in files.values():
            item = read_item(path)
            for recipe in item.recipes.values():
                assert set(recipe.needs).isdisjoint(recipe.variables)
