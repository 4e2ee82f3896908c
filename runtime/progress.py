"""How far a long job is: a bar with rate and time left, or plain lines where nobody watches."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

LINE_EVERY_SECONDS: Final = 20.0
"""How often a plain line is written where there is no terminal."""


class Progress(Protocol):
    """What a long job reports while it runs."""

    def stage(self, what: str, *, total: int, done: int = 0) -> AbstractContextManager[object]:
        """Begin a stage of `total` items, `done` of which an earlier run did; end it after."""

    def advance(self, count: int) -> None:
        """Count items of the current stage as done."""

    def say(self, message: str) -> None:
        """Report one fact."""


class NoProgress:
    """Reports nothing."""

    @contextmanager
    def stage(self, what: str, *, total: int, done: int = 0) -> Iterator[None]:
        """Do nothing."""
        del what, total, done
        yield

    def advance(self, count: int) -> None:
        """Do nothing."""

    def say(self, message: str) -> None:
        """Do nothing."""


class ConsoleProgress:
    """A bar on a terminal; elsewhere a line now and then, fit for a log file."""

    def __init__(self, console: Console | None = None, unit: str = "images") -> None:
        """Take where to show it, standard error by default, and what is counted.

        Args:
            console: to print on.
            unit: a plural; `bytes` are shown as kB, MB, GB.
        """
        self._console = console or Console(stderr=True)
        self._unit = unit
        self._stage: _Bar | _Lines | None = None

    @contextmanager
    def stage(self, what: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Show a stage while it lasts; give `advance`."""
        kind = _Bar if self._console.is_terminal else _Lines
        self._stage = kind(self._console, what, self._unit, total, done)
        try:
            yield self.advance
        finally:
            self._stage.close()
            self._stage = None

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Give a function to be called with (done, total).

        The stage begins with its first call, and ends when all is done or with the block.
        """
        with ExitStack() as stack:
            before = 0

            def count(done: int, total: int) -> None:
                nonlocal before
                if self._stage is None:
                    stack.enter_context(self.stage(what, total=total))
                self.advance(done - before)
                before = done
                if done == total:
                    stack.close()  # another stage may follow within the block

            yield count

    def advance(self, count: int) -> None:
        """Move the bar, or write a line if the last is long ago."""
        if self._stage is not None:
            self._stage.advance(count)

    def say(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False, soft_wrap=True, markup=False)


class _Bar:
    def __init__(self, console: Console, what: str, unit: str, total: int, done: int) -> None:
        amounts: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), _RateColumn(unit))
        if unit == "bytes":
            amounts = (DownloadColumn(), TransferSpeedColumn())
        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            *amounts,
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(what, total=total, completed=done)
        self._progress.start()

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def close(self) -> None:
        self._progress.stop()


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing while it is not known."""
        return Text(f"{task.speed:.1f} {self._unit}/s" if task.speed else "")


class _Lines:
    def __init__(self, console: Console, what: str, unit: str, total: int, done: int) -> None:
        self._console, self._what, self._unit = console, what, unit
        self._total, self._before, self._done = total, done, done
        self._begun = self._written = time.monotonic()
        if unit == "bytes":  # of a stage of one huge file, the first line may come after minutes
            self._print(f"{what}: {decimal(total)}")

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._written < LINE_EVERY_SECONDS:
            return
        self._written = now
        rate = (self._done - self._before) / max(now - self._begun, 1e-9)
        minutes = (self._total - self._done) / max(rate, 1e-9) / 60
        if self._unit == "bytes":
            counts = f"{decimal(self._done)} of {decimal(self._total)}, {decimal(int(rate))}/s"
        else:
            counts = f"{self._done} of {self._total} {self._unit}, {rate:.1f} {self._unit}/s"
        self._print(f"{self._what}: {counts}, {minutes:.0f} min left")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        pass
