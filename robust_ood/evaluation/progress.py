"""How far an evaluation is."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class Progress:
    """Told what is computed, in units of one clean score of one image; shows nothing."""

    def expect(self, work: float) -> None:
        """Add work to what is to be done; negative for work that turns out to be done already."""

    def begin(self, title: str) -> None:
        """Say what is computed next."""

    def done(self, work: float) -> None:
        """Say that so much work is done."""


class ProgressBar(Progress):
    """A bar with the time left, on a terminal only; it is gone when the block ends."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(24), TaskProgressColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._bar = RichProgress(
            *columns,
            *times,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=300,  # clean passes and attacks differ in what they say of the time left
        )
        self._task = self._bar.add_task("reading", total=None)
        self._total = 0.0

    def __enter__(self) -> ProgressBar:
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if (
            not self._bar.disable
        ):  # older versions of rich end a bar that was never shown with an empty line
            self._bar.stop()

    def expect(self, work: float) -> None:
        """Add work to what is to be done."""
        self._total += work
        self._bar.update(self._task, total=self._total)

    def begin(self, title: str) -> None:
        """Show what is computed next."""
        self._bar.update(self._task, description=title)

    def done(self, work: float) -> None:
        """Move the bar."""
        self._bar.advance(self._task, work)
