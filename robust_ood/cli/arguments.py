"""A command line, to its settings or to one line that says what is wrong with it."""

from __future__ import annotations

import inspect
from argparse import ArgumentError
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from robust_ood.cli.bounds import check_numbers
from robust_ood.cli.messages import as_written, causes, explain
from robust_ood.errors import UserError, unknown_setting
from robust_ood.settings import import_path
from robust_ood.texts import first_sentence


def parse_arguments(parser: ArgumentParser, arguments: Sequence[str] | None) -> Namespace:
    """Return the settings of a command line.

    Raises: `UserError` for whatever the parser refuses.
    """
    _refuse_null_characters(arguments or ())
    try:
        settings = parser.parse_args(arguments)
    except ArgumentError as error:
        # Not with the other imports: it loads torch, and a command that succeeds does without.
        from robust_ood.cli.networks import accept_factory

        if accept_factory(causes(error)):
            return parse_arguments(parser, arguments)
        raise explain(error) from error
    except UserError:
        raise
    except _OF_VALUES as error:
        # Of jsonargparse's insides, on a value that it did not expect.
        raise UserError(f"settings: one cannot be read ({first_sentence(error)})") from error
    chosen = settings
    if settings.get("subcommand"):
        chosen = settings[settings.subcommand]
    check_numbers(chosen.as_dict())
    _check_further_settings(chosen)
    return settings


_OF_VALUES = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def _refuse_null_characters(arguments: Sequence[str]) -> None:
    """Refuse what no operating system takes for a name, before a library tries it as a path."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if "\0" in argument:
            option = argument if argument.startswith("--") else before
            name = option.partition("=")[0].lstrip("-")
            raise UserError(f"{name}: expected a text without null characters")


def _check_further_settings(settings: Namespace) -> None:
    """Refuse `dict_kwargs` of a class that takes no settings but those that it names."""
    for key, further in settings.items(branches=True):
        owner, _, name = key.rpartition(".")
        if name != "dict_kwargs" or not further:
            continue
        target = import_path(owner, settings[f"{owner}.class_path"])
        parameters = inspect.signature(target).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        known = [f"{as_written(owner)}.{parameter}" for parameter in parameters]
        raise unknown_setting(f"{as_written(owner)}.{next(iter(further))}", known)
