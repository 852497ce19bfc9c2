"""Kill training runs with SIGKILL at random moments, resume them, and compare the results.

    python benchmarks/kill_and_resume.py --output docs/results/kill_and_resume.md
    python benchmarks/kill_and_resume.py --processes 1 --loaders memory --trials 1 --kills 2

The first command kills 20 times and takes about 15 minutes. For each number of processes (several:
DDP over gloo) and each kind of data (arrays in memory; a folder of images with `.npy` outliers read
by two workers) one run is left alone. The others run `train.py fit`, have their whole process group
killed, and continue with `--ckpt_path last`. What must agree with the run left alone, bit for bit:
every tensor and number of the final checkpoint (weights, their average, optimiser, schedule,
callbacks), the rows of `metrics.csv` and every sampled batch of images in every process. Options
that this script does not know go to `train.py`. `--config` takes other recipes; what is no
classifier (a flow, an auto-encoder) needs `--no-robust-validation`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from page import command, machine
from PIL import Image

from robust_ood.data import load_set

ROOT = Path(__file__).resolve().parent.parent
STATE = (
    "state_dict",
    "raw_state_dict",
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "epoch",
    "global_step",
    "replay",
    "perturbations",
)
SHORT = [
    *(
        "--trainer.max_epochs",
        "3",
        "--trainer.log_every_n_steps",
        "2",
        "--checkpoints.every_n_steps",
        "3",
    ),
    *(
        "--data.batch_size",
        "32",
        "--data.outlier_batch_size",
        "32",
        "--guards.limit",
        "0",
        "--averaging.decay",
        "0.99",
    ),
    *("--data.augmentation", "crop_and_flip", "--data.validation_ood", "[noise/rademacher]"),
    *("--trainer.callbacks+", "benchmarks.sampled_images.SampledImages"),
]
ROBUST_VALIDATION = [
    *("--robust_validation.detectors", "[msp]", "--robust_validation.limit", "16"),
    *("--robust_validation.attacks", "[{name: pgd, radius: 16/255, steps: 2}]"),
]


@dataclass(frozen=True)
class Trial:
    """A killed run: its settings, the newest checkpoint's step at each kill, and what differed."""

    processes: int
    loader: str
    steps: list[int]
    places: list[str]

    @property
    def verdict(self) -> str:
        return "identical" if not self.places else f"DIFFERS: {'; '.join(self.places[:3])}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(ROOT / "configs/experiments/digits_aloe.yaml"))
    parser.add_argument("--robust-validation", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--loaders", nargs="+", default=["memory", "folder"], choices=["memory", "folder"]
    )
    parser.add_argument(
        "--trials", type=int, default=5, help="killed runs for each number of processes and loader"
    )
    parser.add_argument("--kills", type=int, default=1, help="how often each of them is killed")
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_and_resume"))
    parser.add_argument(
        "--output", type=Path, default=None, help="also write a page of results (Markdown)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options, extra = parser.parse_known_args()
    moments, trials, begin = random.Random(options.seed), [], time.monotonic()
    for processes in options.processes:
        for loader in options.loaders:
            settings = [
                *SHORT,
                *(ROBUST_VALIDATION if options.robust_validation else []),
                *attack_steps(options.config),
                *extra,
                "--trainer.devices",
                str(processes),
            ]
            settings += folder_settings(options.folder / "images") if loader == "folder" else []
            whole = fresh(options.folder / f"{processes}-{loader}-whole")
            seconds = time_until_end(start(options.config, whole, settings), whole)
            held = content(whole / "last.ckpt")
            print(f"{processes} process(es), {loader}: not killed; {held}", flush=True)
            for number in range(options.trials):
                killed = fresh(options.folder / f"{processes}-{loader}-killed-{number + 1}")
                steps = run_killed(
                    options.config, killed, settings, options.kills, seconds, moments
                )
                trials.append(
                    Trial(processes, loader, steps, differences(whole, killed, processes))
                )
                print(
                    f"  run {number + 1}: killed after step {steps}: {trials[-1].verdict}",
                    flush=True,
                )
    kills, failures = (
        sum(len(trial.steps) for trial in trials),
        sum(bool(trial.places) for trial in trials),
    )
    print(f"{kills} kills in {len(trials)} runs, {failures} run(s) that ended differently")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(page(trials, held, (time.monotonic() - begin) / 60))
        print(f"wrote {options.output}")
    return 1 if failures else 0


def attack_steps(config: str) -> list[str]:
    """Return the option that shortens training attacks, for methods that have some."""
    if "inlier_attack" in Path(config).read_text():
        return ["--model.init_args.inlier_attack.steps", "2"]
    return []


def folder_settings(folder: Path) -> list[str]:
    """Write digits as image files and outliers as `.npy`; return the options that read them."""
    digits, outliers = (
        load_set("digits/train", Path(), "train"),
        load_set("photographs/outliers", Path(), "outliers"),
    )
    chosen = torch.arange(320)
    images, labels = digits.read(chosen).permute(0, 2, 3, 1).numpy(), digits.labels[:320]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "train" / str(int(label)) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.save(folder / "outliers.npy", outliers.read(torch.arange(500)).permute(0, 2, 3, 1).numpy())
    return ["--data.root", str(folder), "--data.train", "train", "--data.outliers", "outliers.npy",
            "--data.size", "32", "--data.reading.workers", "2", "--data.reading.memory_limit", "0",
            "--trainer.max_epochs", "8",
            "--robust_validation.every_n_epochs", "4"]  # fmt: skip


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def start(
    config: str, folder: Path, settings: list[str], *, resume: bool = False
) -> subprocess.Popen[bytes]:
    arguments = [
        sys.executable,
        str(ROOT / "train.py"),
        "fit",
        "-c",
        config,
        "--output",
        str(folder),
        *settings,
    ]
    arguments += ["--ckpt_path", "last"] if resume else []
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("ab") as output:
        # A session of its own, so that all the processes of a distributed run can be killed at
        # once.
        return subprocess.Popen(
            arguments, stdout=output, stderr=output, start_new_session=True, env=environment
        )


def time_until_end(process: subprocess.Popen[bytes], folder: Path) -> float:
    """Return the seconds from a run's first checkpoint to its end."""
    while process.poll() is None and not (folder / "last.ckpt").exists():
        time.sleep(0.02)
    begin = time.monotonic()
    check(process.wait(), folder)
    return time.monotonic() - begin


def run_killed(
    config: str,
    folder: Path,
    settings: list[str],
    kills: int,
    seconds: float,
    moments: random.Random,
) -> list[int]:
    """Run to the end with so many kills, and return the newest checkpoint's step at each."""
    steps: list[int] = []
    while len(steps) < kills:
        before = written(folder)
        process = start(config, folder, settings, resume=bool(steps))
        while process.poll() is None and written(folder) == before:
            time.sleep(0.02)
        # Spread over the run: the k-th kill falls into what remains after those before it.
        time.sleep(moments.uniform(0, 0.9 * seconds / kills))
        if process.poll() is not None:
            check(process.returncode, folder)
            shutil.rmtree(folder)  # it ended before its kill: once more
            steps = []
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        steps.append(int(torch.load(folder / "last.ckpt", weights_only=True)["global_step"]))
    check(start(config, folder, settings, resume=True).wait(), folder)
    return steps


def check(code: int, folder: Path) -> None:
    if code != 0:
        raise SystemExit(f"train.py ended with {code}:\n{(folder / 'output.txt').read_text()}")


def written(folder: Path) -> int:
    path = folder / "last.ckpt"
    return path.stat().st_mtime_ns if path.exists() else 0


def differences(whole: Path, killed: Path, processes: int) -> list[str]:
    """Name what differs between two finished runs."""
    first, second = (
        torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, killed)
    )
    places = [place for key in STATE for place in differing(first.get(key), second.get(key), key)]
    if (whole / "metrics.csv").read_bytes() != (killed / "metrics.csv").read_bytes():
        places.append("metrics.csv")
    names = [f"sampled-{rank}.txt" for rank in range(processes)]
    return places + [name for name in names if sampled(whole / name) != sampled(killed / name)]


def differing(first: object, second: object, path: str) -> list[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted({*first, *second}, key=str)
        return [
            place
            for key in keys
            for place in differing(first.get(key), second.get(key), f"{path}.{key}")
        ]
    if (
        isinstance(first, (list, tuple))
        and isinstance(second, (list, tuple))
        and len(first) == len(second)
    ):
        pairs = enumerate(zip(first, second, strict=True))
        return [place for i, pair in pairs for place in differing(*pair, f"{path}.{i}")]
    both = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    return [] if (torch.equal(first, second) if both else first == second) else [path]


def sampled(path: Path) -> dict[str, set[str]]:
    """Return the digests of each batch; a batch that was repeated must have the same one."""
    found: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        batch, _, digest = line.rpartition(" ")
        found.setdefault(batch, set()).add(digest)
    return found


def content(path: Path) -> str:
    """Say how much of a checkpoint is compared."""
    leaves = [
        leaf for key in STATE for leaf in _leaves(torch.load(path, weights_only=True).get(key))
    ]
    tensors = sum(isinstance(leaf, torch.Tensor) for leaf in leaves)
    return f"its checkpoint holds {tensors} tensors and {len(leaves) - tensors} other values"


def _leaves(nested: object) -> list[object]:
    if isinstance(nested, dict):
        nested = list(nested.values())
    return (
        [leaf for part in nested for leaf in _leaves(part)]
        if isinstance(nested, (list, tuple))
        else [nested]
    )


def page(trials: list[Trial], held: str, minutes: float) -> str:
    same, kills = (
        sum(not trial.places for trial in trials),
        sum(len(trial.steps) for trial in trials),
    )
    lines = [
        "# Killed and resumed runs",
        "",
        f"**{same} of {len(trials)} runs, killed {kills} times with SIGKILL, ended as the run "
        "never killed.** Compared bit for bit: the final checkpoint (weights, their moving "
        "average, optimiser, schedule, callbacks; "
        f"{held.removeprefix('its checkpoint holds ')}), the rows of `metrics.csv` (losses, "
        "accuracy, learning rate, robust validation), and every sampled batch of images and "
        "outliers in every process.",
        "",
        f"- Command: `{command()}` ({minutes:.0f} minutes)",
        f"- Machine: {machine()}",
        "- ALOE on the embedded digits, WideResNet-10-1, with weight averaging and robust "
        "validation, a checkpoint every 3 steps; two processes: DDP over gloo. memory: arrays in "
        "memory; folder: a folder of images with outliers in a `.npy` file, read by 2 workers a "
        "process.",
        "",
        "| processes | loader | newest checkpoint when killed (step) | end |",
        "|---|---|---|---|",
    ]
    for trial in trials:
        steps = ", ".join(map(str, trial.steps))
        lines.append(f"| {trial.processes} | {trial.loader} | {steps} | {trial.verdict} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
