"""The short form of benchmarks/kill_and_resume.py: a run killed twice with SIGKILL ends as the run
never killed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_run_killed_twice_ends_as_the_run_never_killed(tmp_path):
    command = [
        *(sys.executable, "benchmarks/kill_and_resume.py", "--folder", str(tmp_path)),
        *("--processes", "1", "--loaders", "memory", "--trials", "1", "--kills", "2"),
        *(
            "--trainer.max_epochs",
            "2",
            "--trainer.limit_train_batches",
            "12",
            "--trainer.limit_val_batches",
            "1",
        ),
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 kills in 1 runs, 0 run(s) that ended differently" in run.stdout
