"""Runs the steps of an item; what is finished is skipped, what was stopped continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from robust_ood.cli.papers.plan import Plan, Step
from robust_ood.data import CATALOGUE
from robust_ood.data.catalogue import find_part
from robust_ood.errors import UserError
from robust_ood.evaluation.text_tables import plain
from robust_ood.writing import replace_file

Command = Callable[[Sequence[str]], int]
_MARKS = ".finished"


def check_needs(plan: Plan, root: Path | None) -> None:
    """Raise `UserError` for weights and data that are not there, before anything is computed."""
    recipe = plan.recipe
    for name in plan.missing():
        if name == "root":
            raise UserError(f"root: not given; expected the folder of {', '.join(recipe.data)}")
        raise UserError(f"set: {name} has no value: {recipe.needs[name]}; give --set {name}=VALUE")
    for name, how in recipe.needs.items():
        value = plan.value(name)
        if value is not None and not Path(value).exists():
            raise UserError(f"set: {name}: no such file or folder: {value}; expected {how}")
    if not recipe.data:
        return
    if root is None:
        raise UserError(f"root: not given; expected the folder of {', '.join(recipe.data)}")
    for name, how in recipe.data.items():
        if not how:
            entry, part = find_part(name, CATALOGUE, "data")
            entry.home(root, part)
        elif not (root / name).exists():
            raise UserError(f"root: no {name} in {root}; {how}")


def run_steps(plan: Plan, commands: dict[str, Command], console: Console) -> int:
    """Run the steps that are not finished, and return the exit code.

    It is that of the first step that fails; the same call then begins with it.
    """
    steps = plan.steps()
    for number, step in enumerate(steps, 1):
        title = f"step {number} of {len(steps)}, {step.name}"
        if is_finished(plan, step):
            console.print(plain(f"{title}: finished before"))
            continue
        console.rule(plain(title), align="left", style="dim")
        console.print(plain(step.line), soft_wrap=True)
        code = commands[step.command](_continued(step))
        if code:
            return code
        mark = _mark(plan, step)
        mark.parent.mkdir(parents=True, exist_ok=True)
        replace_file(mark, json.dumps({"command": step.line}) + "\n")
    return 0


def _continued(step: Step) -> list[str]:
    """Return the arguments of a step, which continue a training that was stopped."""
    arguments = list(step.arguments)
    if step.command == "train" and step.folder.is_dir():
        if (step.folder / "last.ckpt").exists():
            return [*arguments, "--ckpt_path", "last"]
        return [*arguments, "--replace", "true"]  # stopped before its first checkpoint
    return arguments


def is_finished(plan: Plan, step: Step) -> bool:
    """Return whether a step was finished by the same command.

    Raises: `UserError` where another command finished it.
    """
    try:
        made_by = json.loads(_mark(plan, step).read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not step.folder.exists():
        return False
    if made_by != step.line:
        raise UserError(
            f"output: {step.folder} was made by another command ({made_by[:200]}); take another "
            "output, or remove the folder"
        )
    return True


def _mark(plan: Plan, step: Step) -> Path:
    return plan.folder / _MARKS / f"{step.name}.json"


def run_script(arguments: Sequence[str]) -> int:
    """Run `benchmarks/NAME.py` of a checkout, and return the exit code.

    The scripts are no part of an installed package.
    """
    import subprocess
    import sys

    name, *options = arguments
    path = Path(__file__).parents[3] / "benchmarks" / f"{name}.py"
    if not path.is_file() or find_spec("robust_ood") is None:
        raise UserError(f"paper: this item needs benchmarks/{name}.py of a checkout of robust_ood")
    return subprocess.run([sys.executable, str(path), *options], check=False).returncode
