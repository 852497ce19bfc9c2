"""Real evaluations that are killed, stopped, shared by processes, extended, or asked for
nonsense.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from robust_ood import cli
from robust_ood.evaluation import FolderStore, Results, read_cell

ROOT = Path(__file__).parents[2]
PLAIN = ["--report", "false", "--figures", "false"]
CHECKED = [
    "--detectors",
    "[msp, pro-msp, {name: knn, neighbours: 3}]",
    "--chunk",
    "4",
    "--intervals",
    "20",
    *PLAIN,
]
SETTINGS = [*CHECKED, "--sanity", "false"]


def arguments(grid, run, output, *more) -> list[str]:
    return ["-c", str(grid), "--checkpoint", str(run / "last.ckpt"), "--output", str(output), *more]


def rows(folder) -> list[dict[str, Any]]:
    content = json.loads((folder / "results.json").read_text())
    return [
        {name: value for name, value in row.items() if name != "seconds"} for row in content["rows"]
    ]


def cells(folder) -> dict[str, tuple[int, int]]:
    """Return what tells a file from one written again under its name."""
    found = (folder / "store" / "cells").glob("[!.]*.npz")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def start(command, output) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process, folder, count) -> None:
    """Wait until so many cells are stored."""
    deadline = time.monotonic() + 300
    while process.poll() is None and len(cells(folder)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(grid, trained_run, tmp_path_factory) -> Path:
    """The results of an evaluation that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert cli.evaluate(arguments(grid, trained_run, folder, *SETTINGS)) == 0
    return folder


def test_an_evaluation_that_is_killed_ends_like_one_that_is_not(grid, trained_run, tmp_path, whole):
    command = ["evaluate.py", *arguments(grid, trained_run, tmp_path / "out", *SETTINGS)]
    total, moments = len(cells(whole)), random.Random(0)
    before: dict[str, tuple[int, int]] = {}
    for part in range(3):
        process = start(command, subprocess.DEVNULL)
        wait_for(process, tmp_path / "out", total * (part + moments.random()) / 3)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate()
        now = cells(tmp_path / "out")
        assert before.items() <= now.items()  # no cell was written again
        before = now
    process = start(command, subprocess.DEVNULL)
    assert process.communicate() == (None, "")
    assert process.returncode == 0
    after = cells(tmp_path / "out")
    assert before.items() <= after.items()
    assert set(after) == set(cells(whole))
    assert rows(tmp_path / "out") == rows(whole)
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    intervals = sum(
        read_cell(path).about["stage"] == "interval"
        for path in (whole / "store" / "cells").iterdir()
    )
    made = content["environment"]["cells_computed"]
    assert total - intervals - len(before) <= made <= total - len(before)
    seconds = {
        name: read_cell(tmp_path / "out" / "store" / "cells" / name).about.get("seconds")
        for name in before
    }
    assert any(seconds.values())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_what_is_done_and_says_how_to_go_on(
    grid, trained_run, tmp_path, whole, signum
):
    """With the checks, which take a while and change no row."""
    if signal.getsignal(signum) == signal.SIG_IGN:  # under nohup, which processes inherit
        pytest.skip(f"{signal.Signals(signum).name} is ignored where these tests run")
    command = ["evaluate.py", *arguments(grid, trained_run, tmp_path, *CHECKED)]
    process = start(command, subprocess.DEVNULL)
    wait_for(process, tmp_path, len(cells(whole)) * 2 // 3)
    process.send_signal(signum)
    _, said = process.communicate()
    assert process.returncode == 130
    (line,) = said.splitlines()
    assert "same command" in line
    assert not list(tmp_path.rglob("*.partial"))
    partly = Results.read(tmp_path)
    assert not partly.complete
    assert 0 < len(rows(tmp_path)) < len(rows(whole))
    assert [row for row in rows(whole) if row in rows(tmp_path)] == rows(tmp_path)
    assert cli.evaluate(command[1:]) == 0
    assert rows(tmp_path) == rows(whole)
    assert Results.read(tmp_path).complete


def test_two_processes_of_torchrun_find_what_one_finds(grid, trained_run, tmp_path, whole):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    out = tmp_path / "output.txt"
    with out.open("w") as output:
        process = start(
            [*launch, "evaluate.py", *arguments(grid, trained_run, tmp_path / "out", *SETTINGS)],
            output,
        )
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert rows(tmp_path / "out") == rows(whole)
    assert set(cells(tmp_path / "out")) == set(cells(whole))
    assert out.read_text().count("wrote ") == 1


STAND_STILL = """
import os, signal, sys, time
from pathlib import Path
from robust_ood.cli import evaluate, interrupts
from robust_ood.evaluation import claims, runner
claims.PATIENCE, claims.SILENCE, claims.BEAT, interrupts.CHECK = 1, float(sys.argv[2]), 0.2, 0.2
marker = Path(__file__).with_name("stopped")
attempt = runner.Runner._attempt
def stop_at_work(self, task, labels):
    if task.stage == "score" and not marker.exists():
        marker.with_name("pid").write_text(str(os.getpid()))
        marker.with_name("pid").rename(marker)
        os.kill(os.getpid(), signal.SIGSTOP)
    attempt(self, task, labels)
if os.environ["RANK"] == sys.argv[1]:
    runner.Runner._attempt = stop_at_work
else:
    while not marker.exists():
        time.sleep(0.05)
sys.exit(evaluate(sys.argv[3:]))
"""


def start_two(command, folder, *, rank, silence) -> tuple[subprocess.Popen[str], int]:
    """Start two processes of torchrun, of which one stops itself within its first score.

    Returns torchrun and the number of the stopped process.
    """
    script = folder / "stand_still.py"
    script.write_text(STAND_STILL)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start([*launch, str(script), rank, silence, *command], subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (folder / "stopped").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, int((folder / "stopped").read_text())


def test_the_work_of_a_process_that_stands_still_is_taken_over(grid, trained_run, tmp_path, whole):
    out = tmp_path / "out"
    command = arguments(grid, trained_run, out, *SETTINGS)
    process, stopped = start_two(command, tmp_path, rank="1", silence="3")
    try:
        deadline = time.monotonic() + 120
        while not (out / "results.json").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        before = cells(out)
    finally:
        os.kill(stopped, signal.SIGCONT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert rows(out) == rows(whole)
    assert cells(out) == before  # what had stood still wrote nothing again
    assert set(cells(out)) == set(cells(whole))
    lines = [line for line in said.splitlines() if f":{stopped}, at " in line]
    assert [line.startswith("waiting since ") for line in lines] == [True, False]
    assert lines[1].endswith("its work is done here")


def test_a_process_whose_launcher_died_does_not_wait_for_ever(grid, trained_run, tmp_path, whole):
    """One process stands still, the other waits for it, and torchrun is killed."""
    out = tmp_path / "out"
    command = arguments(grid, trained_run, out, *SETTINGS)
    process, stopped = start_two(command, tmp_path, rank="0", silence="600")
    try:
        line = ""
        while not line.startswith("waiting since "):
            line = process.stderr.readline()
            assert line, "the other process ended"
        process.kill()
        line = process.stderr.readline()
        assert line.startswith("stopped: the process that started this one ")
    finally:
        os.kill(stopped, signal.SIGCONT)
    rest = process.stderr.read()  # ends when all processes have
    process.wait()
    assert rest.splitlines() == [
        "stopped: what is done is kept; the same command computes the rest"
    ]
    assert not Results.read(out).complete
    assert cli.evaluate(arguments(grid, trained_run, out, *SETTINGS)) == 0
    assert rows(out) == rows(whole)


@pytest.mark.parametrize("name", [".npz", "results.json", "results.csv", ".alive"])
def test_a_full_disk_is_one_line_that_names_the_file(
    capsys, monkeypatch, grid, trained_run, tmp_path, whole, name
):
    written = []

    def full(path, content, original):
        target = path.name.removeprefix(".")
        if name in target:
            written.append(path)
            if name != ".npz" or len(written) == 5:
                original(path, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, content)

    write_bytes, write_text = Path.write_bytes, Path.write_text
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", lambda path, content: full(path, content, write_bytes))
        patched.setattr(Path, "write_text", lambda path, content: full(path, content, write_text))
        assert cli.evaluate(arguments(grid, trained_run, tmp_path, *SETTINGS)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}")
    assert line.endswith(f"{name}: No space left on device")
    assert not list(tmp_path.rglob("*.partial"))
    before = cells(tmp_path)
    assert len(before) >= 4 * (name != ".alive")
    assert cli.evaluate(arguments(grid, trained_run, tmp_path, *SETTINGS)) == 0
    assert before.items() <= cells(tmp_path).items()
    assert rows(tmp_path) == rows(whole)


def test_two_evaluations_of_one_folder_at_once(grid, trained_run, tmp_path, whole):
    command = ["evaluate.py", *arguments(grid, trained_run, tmp_path, *SETTINGS)]
    both = [start(command, subprocess.DEVNULL) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in both] == [("", 0)] * 2
    assert rows(tmp_path) == rows(whole)
    assert FolderStore(tmp_path).damage == {}


def test_several_checkpoints_and_radii(capsys, grid, trained_run, tmp_path):
    first, second = trained_run / "last.ckpt", trained_run / "best.ckpt"
    second = second if second.exists() else Path(torch_copy(first, tmp_path / "tiny" / "best.ckpt"))
    radii = [
        "--attacks",
        "[{name: pgd, radius: [2/255, 8/255], steps: 2}]",
        "--sanity",
        "false",
        "--intervals",
        "0",
        *PLAIN,
    ]
    common = ["-c", str(grid), *radii, "--limit", "8"]
    assert cli.evaluate([*common, "--checkpoint", str(first), "--checkpoint", str(second), "--output",
                         str(tmp_path / "two")]) == 0  # fmt: skip
    found = rows(tmp_path / "two")
    names = {row["model"] for row in found}
    assert len(names) == 2
    assert {row["attack"]: row["radius"] for row in found} == {
        "none": 0, "pgd-2/255": 2 / 255, "pgd-8/255": 8 / 255
    }  # fmt: skip
    models = json.dumps({"aloe": [str(first), str(second)], "one": str(first)})
    whole = ["--output", str(tmp_path / "recipe"), "--table", "full"]
    assert cli.evaluate([*common, "--models", models, *whole]) == 0
    content = json.loads((tmp_path / "recipe" / "results.json").read_text())
    assert {row["model"] for row in content["rows"]} == {"aloe-1", "aloe-2", "one"}
    assert {one["recipe"] for one in content["summary"]} == {"aloe"}
    assert len([one for one in content["summary"] if one["detector"]]) == len(content["rows"]) / 3
    assert "mean +- standard deviation" in " ".join(capsys.readouterr().out.split())


def torch_copy(source: Path, target: Path) -> Path:
    """Save a checkpoint with other weights."""
    content = torch.load(source, weights_only=True)
    content["state_dict"] = {
        name: value * 1.1 if value.is_floating_point() else value
        for name, value in content["state_dict"].items()
    }
    target.parent.mkdir(exist_ok=True)
    torch.save(content, target)
    return target


def test_a_detector_that_fails_costs_only_its_rows(capsys, grid, trained_run, tmp_path):
    more = [
        "--detectors",
        "[msp, {name: knn, neighbours: 100}]",
        "--attacks",
        "[]",
        "--intervals",
        "0",
        *PLAIN,
    ]
    assert cli.evaluate(arguments(grid, trained_run, tmp_path, *more)) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("failed: tiny, knn (fit): UserError: ")
    assert "failed: tiny, knn (fit)" in " ".join(printed.out.split())
    content = json.loads((tmp_path / "results.json").read_text())
    assert {row["detector"] for row in content["rows"]} == {"msp"}
    assert [(one["detector"], one["stage"]) for one in content["failures"]] == [("knn", "fit")]


MISTAKES = [
    ("--chunk 0", "chunk", "0"),
    ("--batch_size 0", "batch_size", ">= 1"),
    ("--intervals -1", "intervals", "neither true nor false"),
    ("--attacks [{name:pgd,radius:[]}]", "attacks.pgd.radius", "no radius"),
    ("--attacks [{name:pgd,radius:[1/255,1/255]}]", "attacks", "is duplicated"),
    ("--models {a:[]}", "models.a", "no checkpoint"),
    ("--save_attacked png", "save_attacked", "quantise: true"),
    ("--save_attacked npz --attacks []", "save_attacked", "no attacks are given"),
    ("--save_attacked jpg", "save_attacked", "npz"),
    ("--transfer tiny/mps", "transfer", "did you mean 'tiny/msp'"),
    ("--transfer all", "transfer", "one detector"),
    ("--models {tiny:x.ckpt}", "models", "'tiny' is duplicated"),
    ("--models {a:missing.ckpt}", "checkpoint", "missing.ckpt"),
    ("--models {a:other.ckpt} --name b", "name", "several"),
]


@pytest.mark.parametrize(("options", "field", "said"), MISTAKES)
def test_a_mistake_is_one_line(capsys, grid, trained_run, tmp_path, options, field, said):
    more = [part.replace(":", ": ") if part[0] in "[{" else part for part in options.split()]
    assert cli.evaluate(arguments(grid, trained_run, tmp_path / "out", *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {field}: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_must_be_given(capsys, grid):
    assert cli.evaluate(["-c", str(grid)]) == 2
    assert capsys.readouterr().err.startswith("error: checkpoint: not given")


QUICK = ["--limit", "2", "--attacks", "[]", "--sanity", "false", "--intervals", "0", *PLAIN]


def other(folder, **changes) -> str:
    """Write the results of another evaluation into a folder."""
    row = json.loads((folder / "results.json").read_text())
    for name, value in changes.items():
        for record in (*row["rows"], *row["classification"]):
            record[name] = value
    (folder / "results.json").write_text(json.dumps(row))
    return (folder / "results.json").read_text()


@pytest.mark.parametrize("changes", [{"model": "another"}, {"id": "another"}])
def test_results_of_another_evaluation_are_not_replaced_unasked(
    capsys, grid, trained_run, tmp_path, changes
):
    command = arguments(grid, trained_run, tmp_path, *QUICK)
    assert cli.evaluate(command) == 0
    before = other(tmp_path, **changes)
    capsys.readouterr()
    assert cli.evaluate(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: output: {tmp_path} holds results o")
    assert "another" in line
    assert (tmp_path / "results.json").read_text() == before
    assert cli.evaluate([*command, "--replace", "true"]) == 0
    assert (tmp_path / "results.json").read_text() != before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", '{"schema": 7}', "not of schema 1"),
        ("results.json", "{", "damaged"),
        ("results.json", '{"schema": 1, "rows": [{"model": 3}], "classification": []}', "damaged"),
        ("store/store.json", '{"layout": 7}', "layout 7"),
        ("store/something", "else", "no store"),
    ],
)
def test_an_output_folder_that_is_something_else(
    capsys, grid, trained_run, tmp_path, file, content, said
):
    (tmp_path / "store").mkdir()
    (tmp_path / file).write_text(content)
    assert cli.evaluate(arguments(grid, trained_run, tmp_path, *QUICK)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert (tmp_path / file).read_text() == content
