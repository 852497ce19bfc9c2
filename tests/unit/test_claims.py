"""Processes that share a folder: a dead one's task is free at once, a silent one's after a while,
a slow one's never.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from robust_ood.evaluation import claims
from robust_ood.evaluation.claims import Watch, alive, claim

HOLD = """
import sys, time
from pathlib import Path
from robust_ood.evaluation import claims
claims.BEAT = 0.1
with claims.claim(Path(sys.argv[1]), "work", "a long task", wait=True):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE", 0.3)
    monkeypatch.setattr(claims, "SILENCE", 3.0)
    monkeypatch.setattr(claims, "POLL", 0.02)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the task and gives signs of life."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_dead_process_loses_its_task_at_once(holder, tmp_path, capsys):
    with claim(tmp_path, "work", "mine", wait=False) as claimed:
        assert not claimed
    holder.kill()
    holder.wait()
    with claim(tmp_path, "work", "mine", wait=False) as claimed:
        assert claimed
    assert capsys.readouterr().err == ""


def test_a_silent_process_loses_its_task_to_one_other(holder, tmp_path, capsys):
    holder.send_signal(signal.SIGSTOP)
    with claim(tmp_path, "work", "mine", wait=True) as claimed:
        assert claimed
        first, second = capsys.readouterr().err.splitlines()
        for line in (first, second):
            assert f":{holder.pid}, at a long task since " in line
        assert first.startswith("waiting since ")
        assert second.endswith("its work is done here")
        # A third one waits for the second, which lives.
        with claim(tmp_path, "work.1", "its", wait=False) as third:
            assert not third
    assert (tmp_path / "work.alive").exists()  # the silent process's own
    assert not (tmp_path / "work.1.alive").exists()


def test_a_slow_process_keeps_its_task(holder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(claims, "SILENCE", 20.0)
    ends = time.monotonic() + 1.5
    look = Watch.look

    def ending(watch):
        if time.monotonic() > ends:
            holder.kill()
        silence = look(watch)
        assert silence < 15  # on a busy machine
        return silence

    monkeypatch.setattr(Watch, "look", ending)
    with claim(tmp_path, "work", "mine", wait=True) as claimed:
        assert claimed
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("waiting since ")
    assert line.endswith(": it is alive")


def test_a_pause_of_the_watching_process_is_no_silence(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: clock[0])
    (tmp_path / "sign").write_text("")
    watch = Watch(tmp_path / "sign")
    assert watch.look() == 0
    clock[0] = 1.0
    assert watch.look() == 1.0
    clock[0] = 1000.0  # stopped, and continued
    assert watch.look() <= 1 + 2 * claims.BEAT


def test_a_sign_of_life_comes_again_and_again_and_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    sign = tmp_path / "sign"
    with alive(sign, "work\nof \x1b[31m mine"):
        first = sign.stat().st_mtime_ns
        deadline = time.monotonic() + 60
        while sign.stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "work of [31m mine" in Watch(sign).holder()
    assert not sign.exists()
    assert Watch(sign).holder() == "another process"
