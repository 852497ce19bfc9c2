"""Attacks in training configs, as the parsers read them.

A mapping with a name is a whole attack, and replaces what earlier configs say of it. The last
release's form, which goes with the next one, is rewritten into the short form, so that both
compose:

    inlier_attack: {region: {class_path: robust_ood.Linf, init_args: {radius: 8/255}}, steps: 10}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_loader

from robust_ood.cli.configs import read_config
from robust_ood.cli.yaml_text import load_yaml
from robust_ood.deprecation import warn_renamed

_NORM = re.compile(r"(?:robust_ood\.(?:regions\.)?)?(Linf|L2)")


def register_loader() -> None:
    """Let the parsers read configs in the long form."""
    set_loader("yaml", load, exceptions=(yaml.YAMLError,))


def load(text: str) -> Any:
    """Return what a YAML text holds, with the attacks of `model` in the short form."""
    settings = load_yaml(text)
    model = settings.get("model") if isinstance(settings, dict) else None
    arguments = model.get("init_args") if isinstance(model, dict) else None
    if isinstance(model, dict) and isinstance(arguments, dict) and _ours(model.get("class_path")):
        # Not with the other imports: it loads torch, which a config without attacks does without.
        from robust_ood.attacks.in_loop import short_form

        for name, value in arguments.items():
            if isinstance(value, Mapping) and "region" in value:
                value = short_form(f"model.{name}", value)
                arguments[name] = value
            if _names_attack(name, value):
                arguments[name] = _whole(value)
    return settings


def _names_attack(name: str, value: Any) -> bool:
    return (
        isinstance(value, Mapping) and "name" in value and name.endswith(("_attack", "spot_search"))
    )


def _whole(attack: Mapping[str, Any]) -> dict[str, Any]:
    """Return an attack in which settings that are not written are null, their default.

    A mapping with a name is a whole attack: the same text means the same attack wherever it is
    written, also after a recipe that sets more. One without a name sets single settings.
    """
    from robust_ood.attacks.in_loop import BUDGET_SETTINGS

    if not set(attack) <= set(BUDGET_SETTINGS):
        return dict(attack)  # refused by the parser, with the setting that is too much
    return {**dict.fromkeys(BUDGET_SETTINGS), **attack}


def whole_attacks(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments in which `--model.X_attack '{name: ...}'` is a whole attack."""
    whole = list(arguments)
    for position, argument in enumerate(arguments):
        match = re.fullmatch(
            r"(--model\.(?:init_args\.)?(\w+))(?:=(.*))?", argument, flags=re.DOTALL
        )
        if match is None:
            continue
        text = match[3]
        if text is None:
            text = "".join(arguments[position + 1 : position + 2])
        if not text.lstrip().startswith("{"):
            continue
        try:
            value = load_yaml(text)
        except yaml.YAMLError:
            continue  # which the parser reports
        if not _names_attack(match[2], value):
            continue
        written = json.dumps(_whole(value))
        if match[3] is None:
            whole[position + 1] = written
        else:
            whole[position] = f"{match[1]}={written}"
    return whole


def short_options(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments in which `--X.region.radius` is written `--X.radius`.

    Likewise `--X.region L2` becomes `--X.norm L2`. A method of the user's own may still have the
    long form, and keeps it.

    Args:
        arguments: as `with_includes` returns them.
    """
    if not any(re.match(r"--model\.[\w.]+\.region\b", argument) for argument in arguments):
        return list(arguments)
    if not _ours(_method(arguments)):
        return list(arguments)
    options: list[str] = []
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals:
            value = "".join(arguments[position + 1 : position + 2])
        short = _short_option(option, value)
        if short != option:
            warn_renamed(option, short)
        options.append(f"{short}{equals}{value}" if equals else short)
    return options


def _short_option(option: str, value: str) -> str:
    radius = re.fullmatch(r"(--model\.[\w.]+)\.region(?:\.init_args)?\.radius", option)
    if radius is not None:
        return f"{radius[1]}.radius"
    region = re.fullmatch(r"(--model\.[\w.]+)\.region(?:\.class_path)?", option)
    if region is not None and _NORM.fullmatch(value):
        return f"{region[1]}.norm"
    return option


def _ours(class_path: Any) -> bool:
    """Return whether a method is the package's own, which also a config without a name extends."""
    return class_path is None or "." not in class_path or class_path.startswith("robust_ood.")


def _method(arguments: Sequence[str]) -> str | None:
    """Return the class path of the method that options or configs name last."""
    method: str | None = None
    for option, value in pairwise(arguments):
        if option == "-c":
            model = read_config(Path(value)).get("model")
            if isinstance(model, Mapping):
                method = model.get("class_path", method)
        elif option in ("--model", "--model.class_path"):
            method = value
    return method
