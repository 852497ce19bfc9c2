"""What every results page says of itself: the command that made it, where and when."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import date
from pathlib import Path

import torch

FOLDERS = {"--root": "ARRAYS", "--weights": "WEIGHTS", "--folder": "RUNS", "--output": "PAGE.md"}


def command() -> str:
    """Return this call, with the caller's own folders named by what they are."""
    arguments = list(sys.argv)
    for option, name in FOLDERS.items():
        if option in arguments:
            arguments[arguments.index(option) + 1] = name
    return shlex.join(["python", *arguments])


def machine() -> str:
    """Return the processor's name, where the system tells it, the number of cores, torch's version and the date."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    return f"{processor}, {os.cpu_count()} cores; torch {torch.__version__}; {date.today().isoformat()}"
