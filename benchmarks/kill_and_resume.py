"""Kill real training runs with SIGKILL at random moments, resume them, and compare how they end with a run never
killed.

    python benchmarks/kill_and_resume.py                                  # 10 trials in one process, 10 with two (gloo)
    python benchmarks/kill_and_resume.py --processes 1 --trials 1 --kills 2

Each trial runs `train.py fit`, kills its whole process group, and continues with `--ckpt_path last`. What must agree
with the run never killed, bit for bit: every tensor and number of the final checkpoint, and the rows of `metrics.csv`.
Options that this script does not know go to `train.py`.
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
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
STATE = ("state_dict", "raw_state_dict", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step")
SHORT = ["--trainer.max_epochs", "3", "--data.batch_size", "32", "--data.outlier_batch_size", "32",
         "--checkpoints.every_n_steps", "3", "--trainer.log_every_n_steps", "2", "--guards.limit", "0"]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs/experiments/digits_aloe.yaml"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--trials", type=int, default=10, help="runs that are killed, for each number of processes")
    parser.add_argument("--kills", type=int, default=1, help="how often each of them is killed")
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_and_resume"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options, extra = parser.parse_known_args()
    moments, failures, kills = random.Random(options.seed), 0, 0
    for processes in options.processes:
        settings = [*SHORT, "--trainer.devices", str(processes), *extra]
        folder = options.folder / f"{processes}-whole"
        shutil.rmtree(folder, ignore_errors=True)
        process = start(options.config, folder, settings)
        seconds = time_until_end(process, folder)
        for trial in range(options.trials):
            killed = options.folder / f"{processes}-killed-{trial}"
            shutil.rmtree(killed, ignore_errors=True)
            steps = run_killed(options.config, killed, settings, options.kills, seconds, moments)
            kills += len(steps)
            places = differences(folder, killed)
            failures += bool(places)
            verdict = "identical" if not places else f"DIFFERS: {'; '.join(places[:3])}"
            print(f"{processes} process(es), trial {trial + 1}: killed after step {steps}: {verdict}", flush=True)
    print(f"{kills} kills, {failures} run(s) that ended differently")
    return 1 if failures else 0


def start(config: str, folder: Path, settings: list[str], *, resume: bool = False) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "train.py"), "fit", "-c", config, "--output", str(folder), *settings]
    command += ["--ckpt_path", "last"] if resume else []
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("ab") as output:
        # A session of its own, so that all the processes of a distributed run can be killed at once.
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)


def time_until_end(process: subprocess.Popen[bytes], folder: Path) -> float:
    """Return the seconds from a run's first checkpoint to its end."""
    while process.poll() is None and not (folder / "last.ckpt").exists():
        time.sleep(0.02)
    begin = time.monotonic()
    check(process.wait(), folder)
    return time.monotonic() - begin


def run_killed(
    config: str, folder: Path, settings: list[str], kills: int, seconds: float, moments: random.Random
) -> list[int]:
    """Run to the end with so many kills, and return the step of the newest checkpoint at each of them."""
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


def differences(whole: Path, killed: Path) -> list[str]:
    """Name what differs between two finished runs."""
    first, second = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, killed))
    places = [place for key in STATE for place in differing(first.get(key), second.get(key), key)]
    if (whole / "metrics.csv").read_bytes() != (killed / "metrics.csv").read_bytes():
        places.append("metrics.csv")
    return places


def differing(first: object, second: object, path: str) -> list[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted({*first, *second}, key=str)
        return [place for key in keys for place in differing(first.get(key), second.get(key), f"{path}.{key}")]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [place for i, pair in pairs for place in differing(*pair, f"{path}.{i}")]
    both = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    return [] if (torch.equal(first, second) if both else first == second) else [path]


if __name__ == "__main__":
    sys.exit(main())
