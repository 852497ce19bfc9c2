"""Every setting of every command, with every kind of value that it is not for, through the real
parsers: either it is read, or one line names the setting.

benchmarks/wrong_inputs.py runs the whole commands on all of them.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import yaml

from robust_ood.cli import (
    encoder_attack_command,
    evaluate_command,
    export_command,
    search_command,
    train_command,
)
from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.sections import Sections
from robust_ood.errors import UserError

VALUES: dict[str, Any] = {
    "null": None,
    "empty": "",
    "list": [],
    "mapping": {},
    "NaN": float("nan"),
    "-1": -1,
    "infinite": float("inf"),
    "text": "wrong",
    "nested": {"a": {"b": [1]}},
    "lists": [[1], {"a": None}],
    "null character": "a\0b",
    "large": 10**23,
}
BASE = {
    "train": {
        "net": {"class_path": "robust_ood.models.WideResNet"},
        "model": {"class_path": "robust_ood.training.Standard"},
    },
    "evaluate": {},
    "search": {},
    "encoder-attack": {},
}
INSIDE = [
    "model.class_path",
    "model.dict_kwargs",
    "model.init_args",
    "model.init_args.attack_mode",
    "model.init_args.inlier_attack",
    "model.init_args.inlier_attack.steps",
    "model.init_args.optimization",
    "model.init_args.optimization.optimizer",
    "net.class_path",
    "net.dict_kwargs",
    "net.init_args",
    "net.init_args.depth",
]
"""Settings of the classes that a config names."""
TRIED = 60
"""Inputs of each command, drawn anew for each version of its settings."""


@cache
def parser_of(command: str) -> Any:
    """Return a command's parser; of training, that of `fit`."""
    modules = {
        "evaluate": evaluate_command,
        "encoder-attack": encoder_attack_command,
        "search": search_command,
        "export": export_command,
    }
    if command in modules:
        return modules[command].parser()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command.TrainingCLI, "parse_arguments", _keep)
        with pytest.raises(_Built) as caught:
            train_command.run(["fit"])
    return caught.value.args[0]


class _Built(Exception):  # noqa: N818  # no error: it carries the parser out
    """The parsers are built."""


def _keep(cli: Any, parser: Any, arguments: Any) -> None:
    raise _Built(cli._subcommand_parsers["fit"])


def keys_of(command: str) -> list[str]:
    sections = Sections(parser_of(command))
    keys = {*sections.hints, *sections.sections}
    if command == "train":
        keys.update(INSIDE)
    return sorted(keys)


def drawn(command: str) -> list[tuple[str, str]]:
    pairs = [(key, name) for key in keys_of(command) for name in VALUES]
    return random.Random(len(pairs)).sample(pairs, TRIED)


def named(said: str, key: str) -> bool:
    """Whether a message names a setting, or the section or class that it is in."""
    return any(part in said.partition(": ")[0] for part in key.split("."))


def with_setting(key: str, value: Any) -> dict[str, Any]:
    settings = value
    for part in reversed(key.split(".")):
        settings = {part: settings}
    return settings


def parse(command: str, folder: Any, *configs: dict[str, Any], options: Any = ()) -> Any:
    arguments = []
    for number, config in enumerate([BASE[command], *configs]):
        path = folder / f"{number}.yaml"
        path.write_text(yaml.safe_dump(config))
        arguments += ["-c", str(path)]
    return parse_arguments(parser_of(command), [*arguments, *options])


def refusal(command: str, folder: Any, *configs: dict[str, Any], options: Any = ()) -> str | None:
    """Return what a command says of its settings; None where it takes them."""
    try:
        parse(command, folder, *configs, options=options)
    except UserError as error:
        return str(error)
    return None


def check_message(said: str | None, key: str, name: str) -> None:
    if said is None:
        return
    assert named(said, key), (key, name, said)
    assert said.isprintable(), (key, name, said)
    assert "Namespace(" not in said, (key, name, said)
    assert len(said) < 600, (key, name, said)


@pytest.mark.parametrize("command", BASE)
def test_a_wrong_value_in_a_config_is_read_or_named(command, tmp_path):
    for key, name in drawn(command):
        said = refusal(command, tmp_path, with_setting(key, VALUES[name]))
        check_message(said, key, name)


@pytest.mark.parametrize("command", BASE)
def test_a_wrong_option_is_read_or_named(command, tmp_path):
    for key, name in drawn(command):
        text = VALUES[name]
        if not isinstance(text, str):
            text = yaml.safe_dump(text, default_flow_style=True).partition("\n")[0]
        option = f"--{key.replace('.init_args', '')}={text}"
        check_message(refusal(command, tmp_path, options=[option]), key, name)


@pytest.mark.parametrize("command", BASE)
def test_empty_settings_mean_their_default(command, tmp_path):
    """Sections, too; only settings for which null is a value of its own may differ."""
    parser = parser_of(command)
    sections = Sections(parser)
    empty: dict[str, Any] = {}
    for key in sorted(sections.sections | sections.hints.keys()):
        if "." not in key and key not in BASE[command]:
            empty[key] = None
    before = parse(command, tmp_path).as_dict()
    after = parse(command, tmp_path, empty).as_dict()
    for key in before.keys() - {"config"}:
        assert after[key] == before[key] or after[key] is None, key
    for key in sections.sections:
        assert after.get(key.partition(".")[0]) is not None, key


@pytest.mark.parametrize("value", [[], [1], 3, True, 0.5])
def test_what_is_no_mapping_is_no_section(value, tmp_path):
    for key in ("trainer", "data", "data.reading", "checkpoints"):
        with pytest.raises(UserError, match=f"^{key}: expected a mapping of settings, got "):
            parse("train", tmp_path, with_setting(key, value))
