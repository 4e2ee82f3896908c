"""What a user sees while a run goes on: a bar on a terminal, now and then a line elsewhere."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .loop import Step

_SECONDS_BETWEEN_LINES = 10.0


class LiveView:
    """Tells about a run on stderr; stdout belongs to the command's result."""

    def __init__(self, console: Console, progress: Progress | None) -> None:
        self._console = console
        self._progress = progress
        self._task = progress.add_task("", total=None, start=False) if progress else None
        self._spoken = 0.0

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def report(self, step: Step, steps: int) -> None:
        """Show what a step measured."""
        if self._progress is not None and self._task is not None:
            if not self._progress.tasks[0].started:
                self._progress.start_task(self._task)
            self._progress.update(
                self._task, completed=step.step, total=steps, description=describe(step)
            )
        elif step.step == steps or time.monotonic() - self._spoken > _SECONDS_BETWEEN_LINES:
            self._spoken = time.monotonic()
            self.say(f"step {step.step} of {steps}  {describe(step)}")


def describe(step: Step) -> str:
    """One line of a step's losses and speed."""
    terms = [
        f"{name} {value:.4f}"
        for name, value in (("lm", step.lm), ("vis", step.vis), ("att", step.att))
        if value is not None
    ]
    if step.skipped:
        terms.append(f"skipped {step.skipped}")
    speed = f"{step.samples_per_second:.1f} samples/s, {step.data_wait:.0%} waiting for data"
    return "  ".join([f"loss {step.loss:.4f}", *terms, speed])


@contextmanager
def live_view() -> Iterator[LiveView]:
    """Open a view on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get("RANK", "0") != "0":
        yield LiveView(console, None)
        return
    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        yield LiveView(console, progress)
