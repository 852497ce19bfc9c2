"""`robust-ood paper`: a table or figure of a paper, from training to the numbers side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from robust_ood import cli, reporting
from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.interrupts import STOPPED
from robust_ood.cli.output import check_writable
from robust_ood.cli.papers.items import SIZES, Item, find_item, item_files, read_item
from robust_ood.cli.papers.plan import Plan, read_variables
from robust_ood.cli.papers.running import Command, check_needs, run_script, run_steps
from robust_ood.cli.parsing import CommandParser
from robust_ood.errors import UserError
from robust_ood.evaluation.text_tables import plain


def parser() -> CommandParser:
    """Return the parser of the paper command."""
    parser = CommandParser(
        prog="robust-ood paper",
        description="Make a table or figure of a paper, with the printed numbers beside.",
    )
    add = parser.add_argument
    add("paper", type=str, help="the paper, or `list` for all items")
    add("item", type=str | None, nargs="?", default=None, help="such as table-1 or figure-2")
    size = Literal["small", "paper"]
    add("--size", type=size, default="small", help="small: digits, minutes; paper: as published")
    add("--root", type=Path | None, default=None, help="folder of the data sets (size paper)")
    add(
        "--output",
        type=Path,
        default=Path("runs/papers"),
        help="folder of all items, which share their steps",
    )
    add("--set", type=str, nargs="+", default=[], help="NAME=VALUE of an item's variables")
    add("--plan", type=bool, default=False, help="only print the commands and what they need")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Make an item and return the exit code."""
    config = parse_arguments(parser(), arguments)
    console = Console()
    if config.paper == "list":
        list_items(config.item, console)
        return 0
    if config.item is None:
        names = item_files().get(config.paper, {})
        if not names:
            find_item(config.paper, "")
        raise UserError(f"item: not given; known: {', '.join(names)}")
    item = find_item(config.paper, config.item)
    plan = Plan(item, config.size, config.output, config.root, read_variables(config.set))
    if config.plan:
        show_plan(plan, console)
        return 0
    reporting.check_installed()
    check_needs(plan, config.root)
    check_writable(config.output)
    try:
        code = run_steps(plan, commands(), console)
    except KeyboardInterrupt:
        print("stopped: what is done is kept; the same command computes the rest", file=sys.stderr)
        return STOPPED
    if code:
        print(f"paper: a step ended with exit code {code}; the same command continues there",
              file=sys.stderr)  # fmt: skip
        return code
    from robust_ood.cli.papers.ending import end  # draws

    end(plan, console)
    return 0


def commands() -> dict[str, Command]:
    """Return what runs a step, by its first word."""
    known: dict[str, Command] = {name: command for name, (command, _) in cli.COMMANDS.items()}
    known["benchmark"] = run_script
    return known


def list_items(paper: str | None, console: Console) -> None:
    """Print every item, or those of a paper: its title, and what both sizes need."""
    files = item_files()
    if paper is not None and paper not in files:
        find_item(paper, "")  # raises
    for name in files:
        if paper in (None, name):
            for path in files[name].values():
                _print_item(read_item(path), console)


def _print_item(item: Item, console: Console) -> None:
    console.print(plain(f"{item.paper} {item.name}: {item.title}"), soft_wrap=True)
    for size in SIZES:
        console.print(plain(f"    {size}: {_needed(item, size)}"), soft_wrap=True)


def _needed(item: Item, size: str) -> str:
    """Return what a size of an item computes, what the user has to give, and the minutes."""
    recipe = item.recipes[size]
    plan = Plan(item, size, Path("runs/papers"))
    counts: dict[str, int] = {}
    for step in plan.steps():
        counts[step.command] = counts.get(step.command, 0) + 1
    parts = [", ".join(f"{count} {command}" for command, count in counts.items())]
    if recipe.data:
        parts.append(f"data {', '.join(recipe.data)}")
    needs = [name for name in plan.missing() if name in recipe.needs]
    if needs:
        parts.append(f"--set {', '.join(needs)}")
    if recipe.minutes is None:
        parts.append("time not measured")
    elif recipe.minutes < 1:
        parts.append("less than a minute")
    else:
        parts.append(f"{recipe.minutes:g} minutes")
    return "; ".join(parts)


def show_plan(plan: Plan, console: Console) -> None:
    """Print what an item needs, and its commands."""
    for name, how in plan.recipe.data.items():
        text = how or f"robust-ood data download {name.partition('/')[0]} --root ROOT"
        console.print(plain(f"# data: {name}: {text}"), soft_wrap=True)
    for name in plan.missing():
        if name in plan.recipe.needs:
            needed = f"# --set {name}=VALUE: {plan.recipe.needs[name]}"
            console.print(plain(needed), soft_wrap=True)
    for step in plan.steps():
        console.print(plain(step.line), soft_wrap=True)
