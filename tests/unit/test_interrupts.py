"""SIGTERM and SIGHUP end an evaluation as Ctrl-C does, unless they are ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from robust_ood.cli.interrupts import stopped_by_signals

SIGNALS = [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_interrupts_and_is_given_back(signum):
    before = signal.signal(signum, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), stopped_by_signals():
            os.kill(os.getpid(), signum)
        assert signal.getsignal(signum) == signal.SIG_DFL
    finally:
        signal.signal(signum, before)


@pytest.mark.parametrize("signum", SIGNALS)
def test_an_ignored_signal_stays_ignored(signum):
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signum)
        assert signal.getsignal(signum) == signal.SIG_IGN
    finally:
        signal.signal(signum, before)


ORPHAN = """
import os, signal, subprocess, sys, time
from robust_ood.cli import interrupts
interrupts.CHECK, interrupts.GRACE = 0.05, float(sys.argv[2])
if sys.argv[1] == "launcher":
    os.environ[interrupts.LAUNCHER] = str(os.getpid())
    subprocess.Popen([sys.executable, sys.argv[0], sys.argv[3], *sys.argv[2:]])
    sys.stdin.read()
    os._exit(0)
signals = interrupts.stopped_by_signals()
if sys.argv[1] == "interrupted":
    signals.__enter__()
with interrupts.stopped_without_launcher() as launcher:
    print("ready", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", launcher.is_gone, flush=True)
    print("the end", flush=True)
"""


def orphan(tmp_path, kind, grace):
    """Return what a process says whose launcher has ended."""
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    launcher = subprocess.Popen(
        [sys.executable, str(script), "launcher", str(grace), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert launcher.stdout.readline() == "ready\n"
    said, _ = launcher.communicate(timeout=60)  # until the orphan has ended, too
    return said.splitlines()


def test_a_process_whose_launcher_is_gone_is_interrupted(tmp_path):
    """As by SIGTERM: where that has no taker, the process ends after a while, with a line."""
    assert orphan(tmp_path, "interrupted", 60) == ["interrupted True", "the end"]


def test_a_process_that_does_not_stop_without_its_launcher_is_ended(tmp_path):
    (line,) = orphan(tmp_path, "deaf", 0.2)
    assert line.startswith("stopped: the process that started this one ")


def test_sigterm_ends_a_process_that_has_a_launcher(tmp_path):
    code = (
        "import os, signal\n"
        "from robust_ood.cli import interrupts\n"
        "os.environ[interrupts.LAUNCHER] = str(os.getppid())\n"
        "with interrupts.stopped_without_launcher():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False)
    assert run.returncode == -signal.SIGTERM
