"""The runs of a study: each is the ordinary command, in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robust_ood import cli
from robust_ood.callbacks.stopwatch import FILE as STOPWATCH
from robust_ood.cli.interrupts import LAUNCHER
from robust_ood.cli.study_file import Settings, Study, StudyMethod
from robust_ood.errors import UserError
from robust_ood.writing import replace_file

Call = Callable[[Sequence[str] | None], int]

LENGTHS = "steps.json"
"""What a trial has measured, and how many steps follow from it, in a method's folder."""
SETTINGS = "settings.json"
"""What a method's runs were trained with, in its folder."""


@dataclass(frozen=True)
class Lengths:
    """The steps of a method's training, and of the warm start before it; what was measured.

    step, epoch: seconds of a step, and of an epoch beside its steps.
    """

    steps: int
    warm_steps: int
    step: float
    epoch: float


class StudyFolder:
    """The folder of a study, in which finished parts are kept.

    Args:
        folder: the folder.
        study: what is done in it.
        data_root: `--data.root` of every training and evaluation; None for the configs' own.
    """

    def __init__(self, folder: Path, study: Study, data_root: str | None) -> None:
        self.folder = folder
        self.study = study
        self.data_root = data_root

    # Folders and files
    # ------------------------------------------------------------------------------------------

    def of(self, method: str) -> Path:
        """Return a method's folder."""
        return self.folder / method

    def run(self, method: str, seed: int) -> Path:
        """Return the folder of one training."""
        return self.of(method) / f"seed-{seed}"

    def results(self, method: str) -> Path:
        """Return the folder of a method's results."""
        return self.of(method) / "results"

    def prepare(self) -> None:
        """Write the configs of all methods.

        Raises: `UserError` where the folder holds a method's runs under other settings.
        """
        for name in self.study.methods:
            trained_with = self._trained_with(name)
            path = self.of(name) / SETTINGS
            if path.exists() and json.loads(path.read_text()) != trained_with:
                raise UserError(
                    f"output: {self.of(name)} holds runs of {name} under other settings; "
                    "choose another --output, or remove that folder"
                )
            self.of(name).mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(trained_with, indent=1) + "\n")
        self._write_configs(self.folder, self.study.train, self.study.evaluate)
        for method in self.study.methods.values():
            self._write_configs(self.of(method.name), method.train, method.evaluate)

    def _trained_with(self, name: str) -> Any:
        method = self.study.methods[name]
        budget = self.study.budget
        content: dict[str, Any] = {
            "train": self.study.settings_of(name),
            "minutes": budget.minutes,
            "steps": budget.steps,
            "warm_start": None,
        }
        if method.warm_start is not None:
            first = method.warm_start.method
            content["warm_start"] = [method.warm_start.share, self.study.settings_of(first)]
        return json.loads(json.dumps(content, default=str))

    def _write_configs(self, folder: Path, train: Settings, evaluate: Settings) -> None:
        for name, settings in (("train", train), ("evaluate", evaluate)):
            text = yaml.safe_dump(settings, sort_keys=False) if settings else "{}\n"
            replace_file(folder / f"{name}.yaml", text)

    # Trials
    # ------------------------------------------------------------------------------------------

    def lengths(self, method: StudyMethod) -> Lengths | None:
        """Return how many steps a method trains, where that was found out before."""
        path = self.of(method.name) / LENGTHS
        if not path.exists():
            return None
        return Lengths(**json.loads(path.read_text()))

    def measure(self, method: StudyMethod) -> int:
        """Find out how many steps a method trains, by a short trial; return the exit code.

        The trial also shows what is wrong with the settings of training and evaluation, before
        hours are spent.
        """
        trial = self.of(method.name) / "trial"
        budget = self.study.budget
        steps = budget.trial_steps if budget.minutes is not None else 1
        arguments = [*self._training(method.name), "--output", str(trial), "--replace", "true"]
        arguments += ["--trainer.max_steps", str(steps), "--seed_everything", "0"]
        code = self._call(cli.train, arguments, method.name)
        if code:
            return code
        checkpoint = {"trial": str(trial / "last.ckpt")}
        code = self._call(cli.check_evaluation, self._evaluation(method, checkpoint), method.name)
        if code:
            return code
        measured = json.loads((trial / STOPWATCH).read_text())
        lengths = self._lengths(method, measured)
        replace_file(self.of(method.name) / LENGTHS, json.dumps(vars(lengths), indent=1) + "\n")
        shutil.rmtree(trial)
        return 0

    def _lengths(self, method: StudyMethod, measured: dict[str, Any]) -> Lengths:
        budget = self.study.budget
        share = 1.0
        warm_steps = 0
        if method.warm_start is not None:
            share = 1 - method.warm_start.share
        clock = measured[budget.clock]
        if budget.steps is not None:
            steps = max(1, round(share * budget.steps))
            warm_steps = budget.steps - steps
        else:
            assert budget.minutes is not None
            seconds = 60 * budget.minutes
            steps = steps_within(share * seconds, measured["steps_per_epoch"], clock)
            if method.warm_start is not None:
                first = self.study.methods[method.warm_start.method]
                known = self.lengths(first)
                assert known is not None  # methods without a warm start are measured first
                warm_steps = max(1, round(method.warm_start.share * known.steps))
        return Lengths(steps, warm_steps, clock["step"], clock["epoch"])

    # Runs
    # ------------------------------------------------------------------------------------------

    def is_trained(self, method: StudyMethod, seed: int) -> bool:
        """Return whether a training has come to its end."""
        lengths = self.lengths(method)
        return lengths is not None and _is_finished(self.run(method.name, seed), lengths.steps)

    def train(self, method: StudyMethod, seed: int) -> int:
        """Train a network, or go on with it, and return the exit code."""
        lengths = self.lengths(method)
        assert lengths is not None
        run = self.run(method.name, seed)
        begin: list[str] = []
        if method.warm_start is not None:
            first = run / "warm_start"
            code = self._fit(method.warm_start.method, first, seed, lengths.warm_steps)
            if code:
                return code
            begin = ["--init_from", str(first / "last.ckpt")]
        return self._fit(method.name, run, seed, lengths.steps, begin)

    def _fit(self, method: str, run: Path, seed: int, steps: int, begin: Sequence[str] = ()) -> int:
        if _is_finished(run, steps):
            return 0
        arguments = [*self._training(method), "--output", str(run), *begin]
        arguments += ["--trainer.max_steps", str(steps), "--seed_everything", str(seed)]
        if list(run.glob("last*.ckpt")):
            arguments += ["--ckpt_path", "last"]
        code = self._call(cli.train, arguments, method)
        if code == 0 and not _is_finished(run, steps):
            print(
                f"{run}: ended before its {steps} steps; its last.ckpt is taken as it is",
                file=sys.stderr,
            )
            _note_early_end(run, steps)
        return code

    def evaluate(self, method: StudyMethod) -> int:
        """Evaluate a method's trained networks and return the exit code."""
        files = []
        for seed in self.study.seeds:
            if self.is_trained(method, seed):
                files.append(str(self.run(method.name, seed) / "last.ckpt"))
        checkpoints: Any = files if len(files) > 1 else files[0]
        arguments = self._evaluation(method, {method.name: checkpoints})
        arguments += ["--output", str(self.results(method.name)), "--replace", "true"]
        return self._call(cli.evaluate, arguments, method.name)

    def seconds(self, method: StudyMethod) -> Iterator[float]:
        """Yield how long each finished training of a method took, its warm start included."""
        clock = self.study.budget.clock
        for seed in self.study.seeds:
            run = self.run(method.name, seed)
            if not self.is_trained(method, seed):
                continue
            total = 0.0
            for folder in (run / "warm_start", run):
                if (folder / STOPWATCH).exists():
                    total += json.loads((folder / STOPWATCH).read_text())[clock]["seconds"]
            yield total

    # Calls
    # ------------------------------------------------------------------------------------------

    def _training(self, method: str) -> list[str]:
        arguments = ["fit", "-c", str(self.folder / "train.yaml")]
        arguments += ["-c", str(self.of(method) / "train.yaml"), "--trainer.max_epochs", "-1"]
        arguments += ["--trainer.callbacks+=robust_ood.callbacks.Stopwatch"]
        return [*arguments, *self._root()]

    def _evaluation(self, method: StudyMethod, models: dict[str, Any]) -> list[str]:
        arguments = ["-c", str(self.folder / "evaluate.yaml")]
        arguments += ["-c", str(self.of(method.name) / "evaluate.yaml"), *self._root()]
        return [*arguments, "--models", json.dumps(models)]

    def _root(self) -> list[str]:
        return [] if self.data_root is None else ["--data.root", self.data_root]

    def _call(self, command: Call, arguments: list[str], method: str) -> int:
        return in_process(command, arguments, self.of(method) / "log.txt")


def steps_within(seconds: float, per_epoch: int, clock: dict[str, float]) -> int:
    """Return how many steps fit into a time, at least one.

    Args:
        seconds: the time.
        per_epoch: steps of an epoch.
        clock: seconds of a step, and of an epoch beside its steps.
    """
    step = max(clock["step"], 1e-6)
    epochs, rest = divmod(seconds, per_epoch * step + clock["epoch"])
    steps = int(epochs) * per_epoch + max(0, int((rest - clock["epoch"]) / step))
    return max(1, steps)


def in_process(command: Call, arguments: list[str], log: Path) -> int:
    """Run a command in a process of its own, and return its exit code.

    What it prints goes to the end of a file; errors and warnings go where this process's go. A
    training over several processes needs one of its own, and a copy of this one has loaded all
    libraries already. It ends in order where this process ends.
    """
    # A copy of a process is safe on Linux, where nothing here has used a device or a thread yet.
    method = "fork" if sys.platform == "linux" else "spawn"
    os.environ[LAUNCHER] = str(os.getpid())
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=_run, args=(command, arguments, log))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.terminate()  # a training writes a checkpoint first
        process.join()
        raise
    finally:
        os.environ.pop(LAUNCHER, None)
    return int(process.exitcode)


def _run(command: Call, arguments: list[str], log: Path) -> None:
    # A training over several processes starts the others by this process's own command line.
    words: dict[Call, str] = {cli.train: "train", cli.evaluate: "evaluate"}
    sys.argv = [sys.argv[0], words.get(command, "study"), *arguments]
    sys.stdout.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    try:
        code = command(arguments)
    finally:
        sys.stdout.flush()
    sys.exit(code)


def _is_finished(run: Path, steps: int) -> bool:
    path = run / STOPWATCH
    if not path.exists() or not (run / "last.ckpt").exists():
        return False
    measured = json.loads(path.read_text())
    return bool(measured["steps"] == steps or measured.get("ended_early_of") == steps)


def _note_early_end(run: Path, steps: int) -> None:
    """Note that a callback, such as early stopping, ended a run of so many steps."""
    path = run / STOPWATCH
    measured = json.loads(path.read_text())
    replace_file(path, json.dumps({**measured, "ended_early_of": steps}, indent=1) + "\n")
