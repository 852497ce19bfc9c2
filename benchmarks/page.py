"""A page of results: its tables, and the command that made it, where and when."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from robust_ood.writing import replace_file

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"--root": "ARRAYS", "--data": "ARRAYS"}  # others are called as their option is


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table, and an empty one."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def write_page(output: Path, title: str, lines: Iterable[str], *libraries: str) -> None:
    """Write a page: title, the given lines, then how, where and when it was made, and print it."""
    text = "\n".join([f"# {title}", "", *lines, made_by(*libraries), ""])
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, text)
    print(text)


def made_by(*libraries: str) -> str:
    """Return how, where and when a page was made, with the libraries that it compares with."""
    return f"Made by `{command()}` on {machine(*libraries)}."


def command() -> str:
    """Return this call, with the caller's own folders and files named by what they are.

    A path that is not inside the current folder becomes its option's name in capitals, `--output
    /home/me/x.md` is `--output OUTPUT`; so does the path in `NAME=PATH`.
    """
    shown, option = [f"benchmarks/{Path(sys.argv[0]).name}"], ""
    for argument in sys.argv[1:]:
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            shown.append(f"{option}={_without_path(option, value)}" if equals else option)
        else:
            name, equals, value = argument.rpartition("=")
            shown.append(f"{name}{equals}{_without_path(option, value)}")
    return shlex.join(["python", *shown])


def _without_path(option: str, value: str) -> str:
    if option in FOLDERS or Path(value).is_absolute() or value.startswith(("..", "~")):
        return FOLDERS.get(option, option.lstrip("-").replace("-", "_").upper())
    return value


def machine(*libraries: str) -> str:
    """Return the processor's name (if known), cores, threads, versions and the date."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    threads = torch.get_num_threads()
    cores = f"{os.cpu_count()} cores"
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) != os.cpu_count():
        cores = f"{len(os.sched_getaffinity(0))} of {cores}"
    parts = [f"{processor}, {cores}, {threads} thread{'s' * (threads > 1)}"]
    if any("cuda" in argument for argument in sys.argv):
        parts.append(torch.cuda.get_device_name())
    parts.append(
        ", ".join(
            [f"torch {torch.__version__}", *(f"{name} {version(name)}" for name in libraries)]
        )
    )
    return "; ".join([*parts, date.today().isoformat()])
