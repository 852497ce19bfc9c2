"""SIGTERM and SIGHUP end an evaluation as Ctrl-C does, unless they are ignored."""

from __future__ import annotations

import os
import signal

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
