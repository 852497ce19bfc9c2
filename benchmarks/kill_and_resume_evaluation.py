"""Kill an evaluation with SIGKILL at random moments, restart it, and compare the results.

    python benchmarks/kill_and_resume_evaluation.py \\
        --output docs/results/kill_and_resume_evaluation.md
    python benchmarks/kill_and_resume_evaluation.py --kills 2 --processes 1

An untrained network, the embedded digits and photographs; `evaluate.py` with four detectors (one of
them fitted) and two attacks. For each number of processes (several: torchrun), one evaluation is
killed `--kills` times, all its processes at once, at moments spread over its cells, and then left
to end. What must hold: its rows are those of one process that was left alone, but for `seconds`; no
cell that was stored at a kill is written again (same inode, same time); and the cells that the
starts computed, by the process named in each, are each there once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from page import table, write_page

from robust_ood.evaluation import read_cell
from robust_ood.models import WideResNet, describe

ROOT = Path(__file__).resolve().parent.parent
GRID = [
    *(
        "-c",
        str(ROOT / "configs/evaluate/digits.yaml"),
        "--chunk",
        "32",
        "--limit",
        "96",
        "--sanity",
        "false",
    ),
    *("--detectors", "[msp, odin, pro-msp, {name: knn, neighbours: 5}]", "--intervals", "50"),
    *(
        "--attacks",
        "[{name: pgd, radius: 16/255, steps: 4}, {name: transfer-msp, radius: 16/255, steps: 4}]",
    ),
    *("--report", "false", "--figures", "false"),
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "kill_and_resume_evaluation"
    )
    parser.add_argument("--output", type=Path, help="Markdown page of the outcome")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    checkpoint = save_network(options.folder / "net" / "last.ckpt")
    whole = options.folder / "whole"
    end(start(checkpoint, whole, 1), whole)
    total, moments, found, failures = len(cells(whole)), random.Random(options.seed), [], 0
    for processes in options.processes:
        folder = options.folder / f"killed-{processes}"
        stored, rewritten = run_killed(checkpoint, folder, processes, options.kills, total, moments)
        last = cells(folder)
        makers = {
            read_cell(folder / "store" / "cells" / name).about.get("process", "none")
            for name in last
        }
        verdicts = {
            "rows equal": rows(folder) == rows(whole),
            "no cell written twice": rewritten == 0,
            "same cells": set(last) == set(cells(whole)),
        }
        failures += not all(verdicts.values())
        facts = [
            processes,
            options.kills,
            ", ".join(map(str, stored)),
            f"{len(last)} of {total}",
            len(makers),
        ]
        facts += [rewritten, len(rows(folder)), "equal" if verdicts["rows equal"] else "DIFFERENT"]
        found.append(facts)
        print(*facts, "ok" if all(verdicts.values()) else f"FAILED: {verdicts}", flush=True)
    if options.output is not None:
        write_page(options.output, "Evaluations killed with SIGKILL", report(found))
    return 1 if failures else 0


def report(rows: list[list[object]]) -> list[str]:
    """Return the page's lines."""
    head = ["processes", "kills", "cells stored at each kill", "cells at the end",
            "processes that computed some",
            "cells written twice", "rows",
            "rows against those of one process left alone"]  # fmt: skip
    return [
        "One evaluation on the embedded digits, killed again and again (all its processes at "
        "once) and started again; what was stored at a kill must neither be lost nor computed "
        "once more.",
        "",
        *table(head, rows),
    ]


def save_network(path: Path) -> Path:
    """Save an untrained network as a training run does."""
    torch.manual_seed(0)
    net = WideResNet(10, 1, 10)
    path.parent.mkdir(parents=True)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "network": describe(net)}, path)
    return path


def start(checkpoint: Path, folder: Path, processes: int) -> subprocess.Popen[bytes]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    given = [
        str(ROOT / "evaluate.py"),
        *GRID,
        "--checkpoint",
        str(checkpoint),
        "--output",
        str(folder),
    ]
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *(launch if processes > 1 else []), *given],
            stdout=output, stderr=output, env=environment,
        )  # fmt: skip


def run_killed(
    checkpoint: Path, folder: Path, processes: int, kills: int, total: int, moments: random.Random
) -> tuple[list[int], int]:
    """Run to the end with so many kills; return the cells stored at each, and how many twice."""
    stored: list[int] = []
    before: dict[str, tuple[int, int]] = {}
    rewritten = 0
    for kill in range(kills):
        process = start(checkpoint, folder, processes)
        wanted = total * (kill + moments.random()) / (kills + 1)
        while process.poll() is None and len(cells(folder)) < wanted:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        if process.poll() is not None:
            raise SystemExit(
                f"ended before kill {kill + 1}:\n{(folder / 'output.txt').read_text()}"
            )
        for pid in family(process.pid):
            with suppress(ProcessLookupError):  # a worker may end when its launcher does
                os.kill(pid, signal.SIGKILL)
        process.wait()
        now = cells(folder)
        rewritten += sum(now.get(name) != mark for name, mark in before.items())
        before = now
        stored.append(len(now))
    end(start(checkpoint, folder, processes), folder)
    return stored, rewritten + sum(cells(folder).get(name) != mark for name, mark in before.items())


def family(pid: int) -> list[int]:
    """Return a process and its descendants; torchrun's workers have other process groups."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = [pid]
    for member in found:  # grows while it is read
        found += [child for child, parent in parents.items() if parent == member]
    return found


def end(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait():
        raise SystemExit(
            f"evaluate.py ended with {process.returncode}:\n{(folder / 'output.txt').read_text()}"
        )


def cells(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what tells a file from one written again under its name: its inode and time."""
    found = [
        path for path in (folder / "store" / "cells").glob("*.npz") if not path.name.startswith(".")
    ]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def rows(folder: Path) -> list[dict[str, object]]:
    content = json.loads((folder / "results.json").read_text())
    return [
        {name: value for name, value in row.items() if name != "seconds"} for row in content["rows"]
    ]


if __name__ == "__main__":
    sys.exit(main())
