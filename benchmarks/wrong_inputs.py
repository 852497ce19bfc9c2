#!/usr/bin/env python3
"""Gives the commands wrong inputs, and counts how each of them ends.

    python benchmarks/wrong_inputs.py [--share 0.1] [--kind config]

The inputs are made from the parsers themselves: every setting of every command, with every kind of
value that it is not for, in a config file and as an option; damaged and endless YAML; variables of
the environment. Each runs the real command in this process, on tiny arrays. An input is

- refused well: exit code 2, and one line that names what is wrong;
- refused badly: exit code 2, with more lines or another name;
- accepted: exit code 0, for one of the reasons in `REASONS`;
- a traceback, or without end (more than half a minute).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import re
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
LONGEST = 30  # seconds
MEMORY = 6 * 2**30  # bytes of addresses: a wrong size must not take the machine's

VALUES: dict[str, Any] = {
    "null": None,
    "empty text": "",
    "list": [],
    "mapping": {},
    "NaN": float("nan"),
    "-1": -1,
    "0": 0,
    "infinite": float("inf"),
    "text": "wrong",
    "true": True,
    "nested": {"a": {"b": [1]}},
    "list of lists": [[1], {"a": None}],
    "null character": "a\0b",
    "large": 10**23,
}
"""What a setting is given, most of it wrong for most settings."""


@dataclass
class Case:
    """One input.

    Args:
        kind: what is wrong: a config, an option, ...
        command: of `robust_ood.cli`.
        arguments: what the command is given.
        key: what the message must name; empty for any.
        value: by its name in `VALUES`.
        environment: variables that are set.
    """

    kind: str
    command: str
    arguments: list[str]
    key: str = ""
    value: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Ending:
    """How a command ended."""

    outcome: str
    text: str


# The commands, on tiny arrays
# ----------------------------------------------------------------------------------------------


class Commands:
    """A folder with data, a config and a checkpoint for each command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        draws = np.random.default_rng(0)
        for name, count in (("train", 32), ("validation", 8), ("test", 8)):
            images = draws.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
            labels = np.arange(count) % 4
            images[:, 0, 0, 0] = labels * 60
            np.savez(folder / f"{name}.npz", images=images, labels=labels)
        for name in ("outliers", "near", "far", "ood"):
            images = draws.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
            np.savez(folder / f"{name}.npz", images=images)
        data = {
            "root": str(folder),
            "train": "train.npz",
            "validation": "validation.npz",
            "test": "test.npz",
            "outliers": "outliers.npz",
            "near": ["near.npz"],
            "far": ["far.npz"],
            "num_classes": 4,
            "batch_size": 8,
            "outlier_batch_size": 8,
        }
        net = {
            "class_path": "robust_ood.models.WideResNet",
            "init_args": {"depth": 10, "width": 1, "num_classes": 4},
        }
        attack = {"name": "pgd", "radius": "8/255", "steps": 1}
        trainer = {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
        }
        model = {
            "class_path": "robust_ood.training.ALOE",
            "init_args": {
                "inlier_attack": attack,
                "outlier_attack": attack,
                "optimization": {"learning_rate": 0.05},
            },
        }
        self.configs: dict[str, dict[str, Any]] = {
            "train": {
                "trainer": trainer,
                "net": net,
                "model": model,
                "data": data,
            },
            "evaluate": {
                "data": data,
                "detectors": ["msp"],
                "attacks": [attack],
                "figures": False,
                "report": False,
                "intervals": 10,
                "device": "cpu",
            },
            "search": {
                "data": {**data, "validation_ood": ["ood.npz"]},
                "detectors": [{"name": "odin", "ranges": {"magnitude": [0, 0.2]}}],
                "device": "cpu",
            },
        }
        for command, config in self.configs.items():
            (folder / f"{command}.yaml").write_text(yaml.safe_dump(config))
        self.checkpoint = folder / "run" / "last.ckpt"

    def prepare(self) -> None:
        """Train the network that is evaluated, and evaluate it once for reports."""
        self.must_end_well("train", [*self.base("train"), "--output", str(self.folder / "run")])
        output = str(self.folder / "results")
        self.must_end_well("evaluate", [*self.base("evaluate"), "--output", output])
        output = str(self.folder / "searched")
        self.must_end_well("search", [*self.base("search"), "--output", output])

    def must_end_well(self, command: str, arguments: list[str]) -> None:
        """Run a command that is right."""
        ending = run(Case("right", command, arguments))
        if ending.outcome != "accepted":
            raise SystemExit(f"{command} {arguments}: {ending.outcome}: {ending.text}")

    def base(self, command: str) -> list[str]:
        """Return the arguments that are right for a command, without --output."""
        if command == "train":
            return ["fit", "-c", str(self.folder / "train.yaml")]
        weights = ["--checkpoint", str(self.checkpoint)]
        if command in ("evaluate", "search"):
            return ["-c", str(self.folder / f"{command}.yaml"), *weights]
        if command == "export":
            return weights
        return [str(self.folder / "results")]


def run(case: Case) -> Ending:
    """Run a command in this process."""
    from robust_ood import cli

    output = io.StringIO()
    errors = io.StringIO()
    before = dict(os.environ)
    os.environ.update(case.environment)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LONGEST)
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            warnings.catch_warnings(),
        ):
            code = getattr(cli, case.command)(case.arguments)
    except TimeoutError:
        return Ending("no end", _innermost())
    except BaseException:  # whatever it is, the user would see it
        return Ending("traceback", _innermost())
    finally:
        signal.alarm(0)
        os.environ.clear()
        os.environ.update(before)
    text = errors.getvalue()
    if code == 0:
        return Ending("accepted", text)
    lines = [line for line in text.splitlines() if not line.startswith("warning: ")]
    said = "\n".join(lines)
    if code != 2 or len(lines) != 1 or not said.startswith("error: ") or len(said) > 700:
        return Ending("refused badly", f"{code}: {said}")
    if not _names(said, case.key):
        return Ending("refused badly", f"expected {case.key}: {said}")
    return Ending("refused well", said)


def _too_long(*_: Any) -> None:
    raise TimeoutError


def _innermost() -> str:
    lines = traceback.format_exc().strip().splitlines()
    return " | ".join([*[line.strip() for line in lines[-7:-1]], lines[-1]])


def _names(said: str, key: str) -> bool:
    """Return whether a message names a setting: it, a part of it, or the section that it is in."""
    words = key.replace(".init_args", "").split(".")
    return not key or any(re.search(rf"\b{re.escape(word)}\b", said) for word in words)


# The inputs
# ----------------------------------------------------------------------------------------------


def settings_of(command: str) -> list[str]:
    """Return the dotted names of a command's settings, and of the sections that they are in."""
    from robust_ood.cli.sections import Sections

    sections = Sections(parser_of(command))
    sections.hints.pop("ckpt_path", None)
    keys = {*sections.hints, *sections.sections} - {"output", "include"}
    return sorted(key for key in keys if "help" not in key)


def parser_of(command: str) -> Any:
    """Return the parser of a command, of `fit` for training."""
    from robust_ood.cli import evaluate_command, export_command, search_command, train_command

    if command != "train":
        modules = {
            "evaluate": evaluate_command,
            "search": search_command,
            "export": export_command,
        }
        return modules[command].parser()
    built = []
    parse = train_command.TrainingCLI.parse_arguments

    def keep(self: Any, parser: Any, args: Any) -> None:
        built.append(self._subcommand_parsers["fit"])
        raise SystemExit

    train_command.TrainingCLI.parse_arguments = keep  # type: ignore[method-assign]
    try:
        with contextlib.suppress(SystemExit):
            train_command.run(["fit"])
    finally:
        train_command.TrainingCLI.parse_arguments = parse  # type: ignore[method-assign]
    return built[0]


METHOD = ("inlier_attack", "outlier_attack", "outlier_weight", "attack_mode", "optimization")
ATTACK = ("name", "norm", "radius", "region", "steps", "step_size", "random_start", "rule")


def cases(commands: Commands) -> Iterator[Case]:
    """Yield all inputs."""
    for command in ("train", "evaluate", "search"):
        keys = settings_of(command)
        if command == "train":
            keys += [f"model.init_args.{name}" for name in METHOD]
            keys += [f"model.init_args.inlier_attack.{name}" for name in ATTACK]
            keys += [f"model.{name}" for name in ("class_path", "init_args", "dict_kwargs")]
            keys += [f"net.{name}" for name in ("class_path", "init_args", "dict_kwargs")]
            keys += ["net.init_args.depth", "net.init_args.num_classes", "experiment.x", "trainr"]
        for key in keys:
            for name, value in VALUES.items():
                yield in_config(commands, command, key, name, value)
        for key in keys:
            for name, text in OPTION_VALUES.items():
                yield as_option(commands, command, key, name, text)
    yield from of_export(commands)
    yield from of_report(commands)
    yield from of_data(commands)
    yield from damaged(commands)
    yield from endless(commands)
    yield from of_environment(commands)


_number = iter(range(10**9))


def config_file(commands: Commands, content: str | bytes) -> str:
    """Write a config, and return its name."""
    path = commands.folder / "configs" / f"wrong-{next(_number)}.yaml"
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return str(path)


def somewhere(commands: Commands) -> list[str]:
    """Return an output folder of its own."""
    return ["--output", str(commands.folder / "outputs" / str(next(_number)))]


def in_config(commands: Commands, command: str, key: str, name: str, value: Any) -> Case:
    """Return a config in which one setting is wrong."""
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    path = config_file(commands, yaml.safe_dump(nested))
    arguments = [*commands.base(command), "-c", path, *somewhere(commands)]
    return Case("config", command, arguments, key, name)


OPTION_VALUES = {
    "empty": "",
    "null": "null",
    "NaN": "nan",
    "-1": "-1",
    "list": "[[1]]",
    "mapping": "{a: 1}",
    "text": "wrong",
    "infinite": "1e400",
    "half of YAML": "{a: [",
    "long number": "9" * 5000,
}


def as_option(commands: Commands, command: str, key: str, name: str, text: str) -> Case:
    """Return a command line in which one option is wrong."""
    option = key.replace(".init_args", "")
    arguments = [*commands.base(command), *somewhere(commands), f"--{option}={text}"]
    return Case("option", command, arguments, key, name)


OTHER_OPTIONS = ["", "\0", "x" * 5000, "/dev/null", "/dev/null/x", "[]", "-1"]


def of_export(commands: Commands) -> Iterator[Case]:
    """Yield wrong command lines of `export`."""
    for option in ("checkpoint", "net", "key_map", "output", "format"):
        for text in OTHER_OPTIONS:
            arguments = [*commands.base("export"), *somewhere(commands), f"--{option}={text}"]
            yield Case("export", "export", arguments, option, text[:20])


def of_report(commands: Commands) -> Iterator[Case]:
    """Yield wrong command lines of `report`."""
    for option in ("output", "tensorboard", "outptu"):
        for text in OTHER_OPTIONS:
            arguments = [*commands.base("report"), f"--{option}={text}"]
            yield Case("report", "report", arguments, option, text[:20])
    for text in OTHER_OPTIONS:
        yield Case("report", "report", [text], "", text[:20])


def of_data(commands: Commands) -> Iterator[Case]:
    """Yield wrong command lines of `data`."""
    files = [str(commands.folder / f"{name}.npz") for name in ("near", "far")]
    for option in ("size", "output", "root", "distance", "workers", "exclude", "name", "of"):
        for text in [*OTHER_OPTIONS, "100000", "1e23"]:
            yield Case("data", "data", ["overlap", *files, f"--{option}={text}"], option, text[:20])
    for option in ("size", "output", "root"):
        for text in [*OTHER_OPTIONS, "100000", "1e23"]:
            arguments = ["preview", files[0], f"--{option}={text}"]
            yield Case("data", "data", arguments, option, text[:20])
    for text in OTHER_OPTIONS:
        for command in ("preview", "verify", "download", "lst", ""):
            yield Case("data", "data", [command, text], "", text[:20])


def damaged(commands: Commands) -> Iterator[Case]:
    """Yield configs in which bytes were changed, left out or doubled."""
    draws = random.Random(0)
    for command in ("train", "evaluate"):
        whole = (commands.folder / f"{command}.yaml").read_bytes()
        for number in range(150):
            text = bytearray(whole)
            for _ in range(1 + number % 4):
                position = draws.randrange(len(text))
                how = draws.randrange(4)
                if how == 0:
                    text[position] = draws.randrange(256)
                elif how == 1:
                    del text[position : position + draws.randrange(1, 40)]
                elif how == 2:
                    text[position:position] = text[position : position + draws.randrange(1, 60)]
                else:
                    text[position:position] = draws.choice(b"\t[]{}:&*!|>'\"%@`#-,?\n\0").to_bytes()
            path = config_file(commands, bytes(text))
            arguments = [*commands.base(command), "-c", path, *somewhere(commands)]
            yield Case("damaged", command, arguments)


def endless(commands: Commands) -> Iterator[Case]:
    """Yield what has no end, or nearly none."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    texts = [
        "[" * 100_000,
        "{a: " * 100_000,
        "data: " + "{a: " * 200 + "}" * 200,
        "\n".join("  " * depth + "a:" for depth in range(500)),
        bomb,
        "a: &a [*a]",
        "data: &d {root: *d}",
        "data: &d {<<: *d}",
        f"limit: {'9' * 5000}",
        f"data: {{batch_size: {'9' * 5000}}}",
        f"data: {{batch_size: {'1:' * 3000}1}}",
        "data: {batch_size: 0x" + "f" * 5000 + "}",
        "data: {batch_size: 1, batch_size: 2}",
        "data: {}\ndata: {}",
        "data: {batch_size: !!int x}",
        "data: {batch_size: !!timestamp 2020-13-45}",
        "data: {batch_size: !!binary x}",
        "data: {batch_size: !!python/object/apply:os.system [ls]}",
        "a: 1\n---\nb: 2",
        "on: 1",
        "1: 2",
        "data: {1: 2}",
        "null: 2",
        "{[1]: 2}",
        "config: train.yaml",
        "config: /dev/zero",
        "data: /dev/zero",
        "trainer: /dev/zero",
        "net: /dev/zero",
        "include: /dev/zero",
        "include: [/dev/zero]",
        'include: ["a\\0b"]',
        "include: ['']",
        "include: ''",
        "include: 0",
        f"include: [{'x' * 5000}.yaml]",
        "data: {root: " + "x" * 4_100_000 + "}",
    ]
    for text in texts:
        for command in ("train", "evaluate"):
            path = config_file(commands, text)
            arguments = [*commands.base(command), "-c", path, *somewhere(commands)]
            yield Case("endless", command, arguments, value=text[:40])
    (commands.folder / "wide").mkdir()
    for level in range(30):
        names = [f"{level + 1}.yaml"] * 2
        text = yaml.safe_dump({"include": names if level < 29 else []})
        (commands.folder / "wide" / f"{level}.yaml").write_text(text)
    files = ["/dev/zero", "/dev/stdin/x", "a\0b", "x" * 5000, "", "/", "/proc/self/mem"]
    files.append(str(commands.folder / "wide" / "0.yaml"))
    for file in files:
        for option in ("-c", "--include", "--data", "--net"):
            for command in ("train", "evaluate"):
                arguments = [*commands.base(command), *somewhere(commands), option, file]
                yield Case("endless", command, arguments, value=file[:40])
    for command, options in MORE_OPTIONS:
        arguments = [*commands.base(command), *somewhere(commands), *options]
        yield Case("more", command, arguments, value=" ".join(options)[:60])


MORE_OPTIONS: list[tuple[str, list[str]]] = [
    ("evaluate", ["--intervals", "1e12"]),
    ("evaluate", ["--intervals", "1000000000000"]),
    ("evaluate", ["--attacks", "[{name: pgd, steps: 1e23}]"]),
    ("evaluate", ["--attacks", "[{name: pgd, steps: 100000000000000000000000}]"]),
    ("evaluate", ["--attacks", "[{name: pgd, restarts: 100000000000000000000000}]"]),
    ("evaluate", ["--attacks", "[{name: pgd, noise: -1}]"]),
    ("evaluate", ["--attacks", "[{name: pgd, radius: []}]"]),
    ("evaluate", ["--attacks", "[{name: pgd, radius: [[1]]}]"]),
    ("evaluate", ["--attacks", "[null]"]),
    ("evaluate", ["--detectors", "[null]"]),
    ("evaluate", ["--detectors", "[{name: null}]"]),
    ("evaluate", ["--detectors", "[{name: msp, label: [1]}]"]),
    ("evaluate", ["--detectors", "[{name: " + "x" * 5000 + "}]"]),
    ("evaluate", ["--detectors", "[{name: msp, label: " + "x" * 5000 + "}]"]),
    ("evaluate", ["--detectors", "[{name: msp, label: '[/b]'}]"]),
    ("evaluate", ["--name", "[/b]"]),
    ("evaluate", ["--name", ".."]),
    ("evaluate", ["--name", "\0"]),
    ("evaluate", ["--name", "x" * 5000]),
    ("evaluate", ["--models", "{'..': x.ckpt}"]),
    ("evaluate", ["--models", "{'': x.ckpt}"]),
    ("evaluate", ["--models", "{a: ''}"]),
    ("evaluate", ["--checkpoint", ""]),
    ("evaluate", ["--net", "os.system"]),
    ("evaluate", ["--net", "torch.nn.Linear"]),
    ("evaluate", ["--output", ""]),
    ("evaluate", ["--output", "/dev/null"]),
    ("evaluate", ["--batch_size", "100000000000000000000000"]),
    ("evaluate", ["--chunk", "100000000000000000000000"]),
    ("evaluate", ["--data.size", "100000"]),
    ("evaluate", ["--device", "cuda:99999999999999999999"]),
    ("evaluate", ["--checks", ""]),
    ("evaluate", ["--checks="]),
    ("train", ["--experiment", "../../x"]),
    ("train", ["--experiment", "/tmp/x"]),
    ("train", ["--experiment", "a\0b"]),
    ("train", ["--experiment", "x" * 5000]),
    ("train", ["--experiment", ""]),
    ("train", ["--experiment", ".."]),
    ("train", ["--output", ""]),
    ("train", ["--output", "a\0b"]),
    ("train", ["--output", "/dev/null"]),
    ("train", ["--trainer.devices", "-3"]),
    ("train", ["--trainer.devices", "[0,0]"]),
    ("train", ["--trainer.max_epochs", "0"]),
    ("train", ["--trainer.max_steps", "0"]),
    ("train", ["--trainer.limit_train_batches", "0"]),
    ("train", ["--trainer.limit_train_batches", "0.0"]),
    ("train", ["--trainer.max_time", "0"]),
    ("train", ["--trainer.max_time", "00:00:00:00"]),
    ("train", ["--trainer.max_time", "{hours: 0}"]),
    ("train", ["--trainer.gradient_clip_val", "-1"]),
    ("train", ["--trainer.check_val_every_n_epoch", "0"]),
    ("train", ["--trainer.val_check_interval", "0"]),
    ("train", ["--trainer.log_every_n_steps", "-1"]),
    ("train", ["--trainer.plugins", "wrong"]),
    ("train", ["--trainer.plugins", "Linf"]),
    ("train", ["--trainer.callbacks", "wrong"]),
    ("train", ["--trainer.profiler", "wrong"]),
    ("train", ["--trainer.strategy", "wrong"]),
    ("train", ["--checkpoints.keep", "1000000000"]),
    ("train", ["--checkpoints.keep", "1" + "0" * 30]),
    ("train", ["--model.seed", "3"]),
    ("train", ["--model.init_args.seed", "3"]),
    ("train", ["--model.net", "x"]),
    ("train", ["--data.seed", "3"]),
    ("train", ["--data.outlier_batch_size", "99999999"]),
    ("train", ["--data.near", "[3]"]),
    ("train", ["--model.optimization.learning_rate", "1e308"]),
    ("train", ["--model.optimization.learning_rate", "1e400"]),
    ("train", ["--model.optimization.optimizer.lr", "wrong"]),
    ("train", ["--model.inlier_attack.steps", "1e23"]),
    ("train", ["--model.inlier_attack.steps", "100000000000000000000000"]),
    ("train", ["--model.inlier_attack.noise", "-1"]),
    ("train", ["--init_from", ""]),
    ("train", ["--ckpt_path", ""]),
    ("train", ["--seed_everything", "1" + "0" * 30]),
    ("train", ["--robust_validation.limit", "-1"]),
    ("train", ["--averaging.decay", "1e308"]),
]


VARIABLES = {
    "WORLD_SIZE": ["x", "0", "-1", "2", "1.5", ""],
    "RANK": ["x", "-1", "1"],
    "LOCAL_RANK": ["x", "-1", "", "99"],
    "SLURM_NTASKS": ["x"],
    "PL_TRAINER_MAX_EPOCHS": ["x"],
    "PL_TRAINER_DEVICES": ["x", "-3"],
    "JSONARGPARSE_DEBUG": ["x"],
    "CUDA_VISIBLE_DEVICES": ["x"],
    "OMP_NUM_THREADS": ["x"],
    "COLUMNS": ["x", "-1", "0"],
    "TERM": ["x"],
}


def of_environment(commands: Commands) -> Iterator[Case]:
    """Yield variables of the environment that make no sense."""
    for command in ("train", "evaluate"):
        arguments = commands.base(command)
        for name, values in VARIABLES.items():
            for value in values:
                rest = somewhere(commands)
                yield Case("environment", command, [*arguments, *rest], "", f"{name}={value}",
                           {name: value})  # fmt: skip
        alone = {"WORLD_SIZE": "2", "RANK": "1"}
        rest = somewhere(commands)
        yield Case("environment", command, [*arguments, *rest], "", "WORLD_SIZE=2 RANK=1", alone)


# Why some are accepted
# ----------------------------------------------------------------------------------------------

UNREAD = {
    "train": ("data.test", "data.near", "data.far", "data.validation_ood"),
    "evaluate": ("data.train", "data.validation", "data.validation_ood", "data.outliers"),
    "search": ("data.train", "data.outliers"),
}
"""Sets that a command does not read, with settings of this script."""


MADE = ("output", "exclude")


def is_unread(case: Case) -> bool:
    """Whether an input is about a set that the command has no use for."""
    if case.kind == "more":
        return case.command == "train" and "--data.near" in case.value
    return case.key in UNREAD.get(case.command, ())


def is_right(case: Case) -> bool:
    """Whether a value is of the setting's type after all, such as 0 for a number."""
    from robust_ood.cli.sections import Sections
    from robust_ood.settings import alternatives

    if case.kind not in ("config", "option"):
        return False
    sections = Sections(_parsers.setdefault(case.command, parser_of(case.command)))
    if case.key in sections.sections:
        return case.value == "mapping"
    hint = sections.hints.get(case.key, Any)
    kinds = {getattr(kind, "__origin__", kind) for kind in alternatives(hint)}
    return hint is Any or bool(kinds & _FITTING.get(case.value, set()))


_parsers: dict[str, Any] = {}
_FITTING: dict[str, set[Any]] = {
    "empty text": {str},
    "empty": {str},
    "list": {list, tuple},
    "mapping": {dict},
    "NaN": {str},
    "-1": {int, float, str},
    "0": {int, float, bool, str},
    "infinite": {float, str},
    "text": {str, Path},
    "true": {bool, str},
    "large": {int, float, str},
    "half of YAML": {str, Path},
    "long number": {str},
}
"""The types that a value of `VALUES` or `OPTION_VALUES` is of."""

REASONS: list[tuple[str, Callable[[Case], bool]]] = [
    ("an empty section or setting means its default", lambda case: case.value == "null"),
    ("a set that this command does not read", is_unread),
    ("a value that the setting takes: of its type, and in its range", is_right),
    (
        "a damaged config that still is one: the bytes changed a value, a comment or a blank",
        lambda case: case.kind == "damaged",
    ),
    (
        "a variable that this command does not read, or means nothing",
        lambda case: case.kind == "environment",
    ),
    (
        "a name of a file or folder like any other, which is made",
        lambda case: case.kind in ("data", "export", "report") and case.key in MADE,
    ),
    (
        "a folder that is not looked into, because the sets are files with whole paths",
        lambda case: case.kind == "data" and case.key == "root",
    ),
    (
        "the documented way to compare exactly",
        lambda case: case.kind == "data" and case.key == "distance",
    ),
    (
        "a word in brackets is a name like any other",
        lambda case: case.kind == "more" and "[/b]" in case.value,
    ),
    (
        "the learning rate beside it replaces the optimiser's",
        lambda case: "optimizer.lr" in case.value,
    ),
]
"""Each reason, and the inputs for which it is one."""


def reason(case: Case) -> str:
    """Return why an input may be accepted; nothing where no reason is known."""
    for words, applies in REASONS:
        if applies(case):
            return words
    return ""


def main() -> int:
    """Run the inputs, print the table, and return 1 where one ended wrongly."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    options.add_argument("--share", type=float, default=1.0, help="of configs and options")
    options.add_argument("--kind", default="", help="only inputs of this kind")
    options.add_argument("--match", default="", help="only inputs whose arguments match")
    options.add_argument("--verbose", action="store_true", help="print each that ended wrongly")
    chosen = options.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    draws = random.Random(1)
    counts: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        commands = Commands(Path(folder))
        commands.prepare()
        for case in cases(commands):
            if chosen.kind and case.kind != chosen.kind:
                continue
            if case.kind in ("config", "option") and draws.random() > chosen.share:
                continue
            if chosen.match and not re.search(chosen.match, " ".join(case.arguments)):
                continue
            ending = run(case)
            kind = counts.setdefault(case.kind, Counter())
            kind["tried"] += 1
            kind[ending.outcome] += 1
            explained = ending.outcome == "refused well"
            if ending.outcome == "accepted":
                words = reason(case)
                reasons[words or "no known reason"] += 1
                explained = bool(words)
            if not explained:
                wrong += 1
                if chosen.verbose:
                    shown = " ".join(case.arguments[-2:])[-160:]
                    print(f"{ending.outcome}: {case.command} {case.key}={case.value!r} "
                          f"[{shown}] {ending.text[-600:]}", flush=True)  # fmt: skip
            elif chosen.verbose and chosen.match:
                print(f"{ending.outcome}: {ending.text[:400]}")
    print_table(counts, reasons)
    return 1 if wrong else 0


COLUMNS = ("tried", "refused well", "accepted", "refused badly", "traceback", "no end")


def print_table(counts: dict[str, Counter[str]], reasons: Counter[str]) -> None:
    """Print how many inputs of each kind ended how, and why some were accepted."""
    total: Counter[str] = Counter()
    print(f"{'':12}" + "".join(f"{name:>15}" for name in COLUMNS))
    for kind, row in [*counts.items(), ("all", total)]:
        print(f"{kind:12}" + "".join(f"{row[name]:15}" for name in COLUMNS))
        total.update(row)
    print("\naccepted:")
    for words, count in reasons.most_common():
        print(f"{count:6}  {words}")


if __name__ == "__main__":
    sys.exit(main())
