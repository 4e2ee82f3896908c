"""What a user sees during a run: a panel on a terminal, now and then a line elsewhere."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..loop import Step
from .best_checkpoint import Best
from .loggers import Kind, Values

_SECONDS_BETWEEN_LINES = 10.0
_STEPS_OF_PACE = 50


class LiveView:
    """Shows a run on stderr; stdout belongs to the command's result.

    It is a logger, too, so that it gets evaluations and checkpoints.

    Args:
        console: to print on.
        live: drawn anew at every step; None prints lines.
        clock: seconds, rising.
    """

    def __init__(
        self,
        console: Console,
        live: Live | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._live = live
        self._clock = clock
        self._printed = -math.inf
        self._pace: deque[tuple[int, float]] = deque(maxlen=_STEPS_OF_PACE)
        self._last: tuple[Step, int] | None = None
        self._saved: int | None = None
        self._validation: Values | None = None
        self._best: Best | None = None

    def say(self, text: str) -> None:
        """Print a line above the panel."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def report(self, step: Step, steps: int) -> None:
        """Show what a step measured."""
        now = self._clock()
        if self._pace and step.step <= self._pace[-1][0]:
            self._forget()  # another run in the same view
        self._pace.append((step.step, now))
        self._last = (step, steps)
        if self._live is not None:
            self._draw()
        elif step.step == steps or now - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = now
            remaining = self.time_left(step.step, steps)
            ending = f", {remaining} left" if remaining else ""
            self.say(f"step {step.step} of {steps}  {describe(step)}{ending}")

    def log(self, kind: Kind, step: int, values: Values) -> None:  # noqa: ARG002 - it is a value
        """Show what an evaluation measured; steps come through `report`."""
        if kind == "train":
            return
        self._validation = values
        self.say(f"held out {_evaluation(values)}, {values['seconds']:.1f} s")
        self._draw()

    def saved(self, step: int, best: Best | None) -> None:
        """Show which checkpoints there are."""
        self._saved, self._best = step, best
        self._draw()

    def close(self, *, failed: bool) -> None:
        """Nothing is held back."""

    def time_left(self, step: int, steps: int) -> timedelta | None:
        """How long the rest takes at the pace of the last steps, evaluations and saves included."""
        (first, begun), (last, now) = self._pace[0], self._pace[-1]
        if last == first:
            return None
        return timedelta(seconds=round((steps - step) * (now - begun) / (last - first)))

    def panel(self, step: Step, steps: int) -> Group:
        """Everything about a run, a line for each kind of number."""
        head = Table.grid(padding=(0, 2))
        remaining = self.time_left(step.step, steps)
        head.add_row(
            Text(f"step {step.step}/{steps}"),
            ProgressBar(total=steps, completed=step.step, width=24),
            Text(f"epoch {step.epoch:.2f}"),
            Text("" if remaining is None else f"{remaining} left"),
        )
        rows = Table.grid(padding=(0, 2))
        for name, text in self._rows(step):
            rows.add_row(Text(name, style="dim"), Text(text))
        return Group(head, rows)

    def _rows(self, step: Step) -> Iterator[tuple[str, str]]:
        yield "train", _losses(step.values())
        if self._validation is not None:
            yield "held out", _evaluation(self._validation)
        if self._best is not None:
            yield "best", str(self._best)
        norms = [f"{group} {norm:.3g}" for group, norm in step.grad_norms.items()]
        yield "gradient", "  ".join([f"norm {step.grad_norm:.3g}", *norms])
        yield "rate", f"{step.lr:.3g}"
        yield "speed", _speed(step)
        host = f"{_gb(step.resident_bytes)} of the process now"
        yield "memory", f"{_gb(step.peak_bytes)} at most  {host}"
        if step.skipped or step.cut:
            yield "samples", f"{step.skipped} skipped  {step.cut} cut"
        yield "saved", "no checkpoint yet" if self._saved is None else f"step {self._saved}"

    def _draw(self) -> None:
        if self._live is not None and self._last is not None:
            self._live.update(self.panel(*self._last), refresh=True)

    def _forget(self) -> None:
        self._pace.clear()
        self._saved = self._validation = self._best = None


def describe(step: Step) -> str:
    """One line of a step's losses and speed."""
    skipped = f"  skipped {step.skipped}" if step.skipped else ""
    return f"{_losses(step.values())}{skipped}  {_speed(step)}"


def _losses(values: Values) -> str:
    terms = [(name, values[name]) for name in ("loss", "lm", "vis", "att")]
    return "  ".join(f"{name} {value:.4f}" for name, value in terms if value is not None)


def _evaluation(values: Values) -> str:
    unread = f"  {values['skipped']} skipped" if values["skipped"] else ""
    return f"step {values['step']}  {_losses(values)}  {values['samples']} samples{unread}"


def _speed(step: Step) -> str:
    return (
        f"{step.samples_per_second:.1f} samples/s, {step.tokens_per_second:.0f} tokens/s, "
        f"{step.data_wait:.0%} waiting for data"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


@contextmanager
def live_view() -> Iterator[LiveView]:
    """Open a view on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get("RANK", "0") != "0":
        yield LiveView(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveView(console, live)
