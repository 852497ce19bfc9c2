"""One line out of jsonargparse's chains of exceptions, and the few texts of it that are read."""

from __future__ import annotations

from typing import Literal

import pytest
from jsonargparse import ArgumentParser
from torch import nn

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.messages import WORDING, causes, read, with_full_name
from robust_ood.cli.parsing import CommandParser, ParserError
from robust_ood.cli.types import register_types
from robust_ood.errors import UserError
from robust_ood.regions import Fraction, Region
from robust_ood.texts import LONGEST_VALUE


class Budget:
    """A class that a setting names, with settings of its own."""

    def __init__(
        self,
        region: Region,
        steps: int = 3,
        size: float | Fraction | None = None,
        rule: Literal["sign", "gradient"] = "sign",
        names: list[str] | None = None,
    ) -> None:
        """Keep nothing."""


def parser() -> CommandParser:
    register_types()
    parser = CommandParser()
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--layers", type=int | dict[str, int] | None, default=None)
    parser.add_subclass_arguments(Budget, "budget")
    parser.add_subclass_arguments(nn.Module, "net")
    parser.add_class_arguments(Budget, "group")
    return parser


def with_commands() -> CommandParser:
    main = CommandParser()
    commands = main.add_subcommands()
    for name in ("fit", "test"):
        command = CommandParser()
        command.add_argument("--steps", type=int, required=name == "test")
        commands.add_subcommand(name, command)
    return main


BUDGET = f"--budget={__name__}.Budget"

# What jsonargparse says of each kind of mistake, and what of that is read. A new version of it that
# says so in other words fails here, and nowhere else without a word.
SAID = {
    "setting": (parser, ["--steps", "x"], "steps"),
    "class path": (parser, ["--net", "torch.nn.Lineer"], "torch.nn.Lineer"),
    "value": (parser, ["--layers", "[1]"], "[1]"),
    "nested value": (parser, ["--layers.a", "x"], "x"),
    "class without a path": (parser, ["--net", "Lineer"], "Lineer"),
    "unknown option": (parser, ["--stepz=1"], "--stepz=1"),
    "missing settings": (with_commands, ["test"], "test.steps"),
}


@pytest.mark.parametrize("wording", SAID)
def test_jsonargparse_still_says_so(wording):
    make, arguments, expected = SAID[wording]
    texts = [str(cause) for cause in chain(make(), arguments)]
    if wording == "nested value":
        texts = [read("value", text) or "" for text in texts]
    readings = [read(wording, text) for text in texts]
    assert expected in readings, texts


def test_every_wording_is_tested():
    assert {*SAID, "unknown setting"} == set(WORDING)


@pytest.mark.parametrize(
    ("make", "settings", "expected"),
    [
        (parser, {"stepz": 1}, "stepz"),
        (parser, {"group": {"stepz": 1}}, "group.stepz"),
        (with_commands, {"subcommand": "fit", "fit": {"stepz": 1}}, "stepz"),
        (with_commands, {"stepz": 1, "subcommand": "fit", "fit": {}}, "stepz"),
    ],
)
def test_jsonargparse_still_names_the_unknown_settings_of_configs(make, settings, expected):
    with pytest.raises(ParserError) as caught:
        make().parse_object(settings)
    *_, innermost = causes(caught.value)
    assert isinstance(innermost, KeyError)
    assert read("unknown setting", str(innermost)) == expected


def chain(parser: ArgumentParser, arguments: list[str]) -> list[BaseException]:
    with pytest.raises(ParserError) as caught:
        parser.parse_args(arguments)
    return list(causes(caught.value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "x"], "steps: expected a whole number, got 'x'"),
        (["--steps"], "steps: expects a value"),
        (["--stepz", "1"], "stepz: unknown setting; did you mean 'steps'?"),
        (["--layers", "[1]"], "layers: expected a whole number or a mapping or null, got '[1]'"),
        ([BUDGET, "--budget.steps", "x"], "budget.steps: expected a whole number, got 'x'"),
        (
            [BUDGET, "--budget.rule", "sine"],
            "budget.rule: expected one of sign, gradient, got 'sine'",
        ),
        (
            [BUDGET, "--budget.size", "8/0"],
            "budget.size: expected a finite number or a fraction such as 8/255 or null, got '8/0'",
        ),
        (
            [BUDGET, "--budget.names", "a"],
            "budget.names: expected a list of strings or null, got 'a'",
        ),
        (
            [BUDGET, "--budget.stepz", "1"],
            "budget.stepz: unknown setting; did you mean 'budget.steps'?",
        ),
        (
            [BUDGET, "--budget.region", "L3"],
            "budget.region: unknown name 'L3'; did you mean 'L2'? known: L1, L2, Linf, Unbounded",
        ),
        (
            [BUDGET, "--budget.region", "Linf", "--budget.region.radius", "x"],
            "budget.region.radius: expected a finite number or a fraction such as 8/255, got 'x'",
        ),
        (["--group.steps", "x"], "group.steps: expected a whole number, got 'x'"),
    ],
)
def test_a_mistake_names_the_setting_and_what_it_expects(arguments, message):
    with pytest.raises(UserError) as caught:
        parse_arguments(parser(), arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["--net", "torch.nn.Lineer"], "net: cannot import 'torch.nn.Lineer'"),
        (["--net", "nowhere.Net"], "net: cannot import 'nowhere.Net' (No module named 'nowhere')"),
        (["--net", "WideResNett"], "net: unknown name 'WideResNett'; did you mean 'WideResNet'?"),
        (
            ["--net", "robust_ood.models.WideResNett"],
            "net: unknown name 'WideResNett'; did you mean 'WideResNet'?",
        ),
        (
            ["--net", "robust_ood.nets.WideResNet"],
            "net: unknown name 'robust_ood.nets.WideResNet'; did you mean 'WideResNet'?",
        ),
        (["--net", "torch.Tensor"], "net: "),
        (["--net", "[3]"], "net: expected a Module or null, got '[3]'"),
    ],
)
def test_a_class_that_cannot_be_used_is_named(arguments, start):
    with pytest.raises(UserError) as caught:
        parse_arguments(parser(), arguments)
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command: not given; known: fit, test"),
        (["fitt"], "command: unknown name 'fitt'; did you mean 'fit'? known: fit, test"),
        (["test"], "steps: not given, and this command needs it"),
        (["fit", "--stepz", "1"], "stepz: unknown setting; did you mean 'steps'?"),
        (["fit", "--steps", "x"], "steps: expected a whole number, got 'x'"),
        (
            ["fit", "stray"],
            "argument: 'stray' does not follow an option; write options as --NAME VALUE",
        ),
    ],
)
def test_a_mistake_of_a_command_is_its_own(arguments, message):
    with pytest.raises(UserError) as caught:
        parse_arguments(with_commands(), arguments)
    assert str(caught.value) == message


def test_long_values_are_cut():
    with pytest.raises(UserError) as caught:
        parse_arguments(parser(), ["--steps", "x" * 5000])
    assert len(str(caught.value)) < 100 + LONGEST_VALUE


def test_a_constructors_mistake_gets_the_full_name_of_its_setting():
    settings = {"model.init_args.attack.steps": 0, "data.steps": 3, "steps": 0}
    error = with_full_name(UserError("steps: 0 is not >= 1"), settings)
    assert str(error) == "model.attack.steps: 0 is not >= 1"
    unknown = UserError("steps: 7 is not >= 1")
    assert with_full_name(unknown, settings) is unknown


def test_a_circle_of_causes_ends():
    first, second = ValueError("first"), OSError("second")
    first.__context__ = second
    second.__context__ = first
    assert list(causes(first)) == [first, second]
