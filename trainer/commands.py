"""`medalign train`."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .loop import Step
from .run.best_checkpoint import Best
from .run.loggers import Kind, Values

_SECONDS_BETWEEN_LINES = 10.0
_STEPS_OF_PACE = 50


class LiveView:
    """Tells about a run on stderr; stdout belongs to the command's result.

    It is a logger, too, so that it hears of evaluations and checkpoints.

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
        self._spoken = -math.inf
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
        elif step.step == steps or now - self._spoken > _SECONDS_BETWEEN_LINES:
            self._spoken = now
            left = self.time_left(step.step, steps)
            ending = f", {left} left" if left else ""
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
        left = self.time_left(step.step, steps)
        head.add_row(
            Text(f"step {step.step}/{steps}"),
            ProgressBar(total=steps, completed=step.step, width=24),
            Text(f"epoch {step.epoch:.2f}"),
            Text("" if left is None else f"{left} left"),
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


def train(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or a shipped recipe; RECIPE+PART adds a part.")
    ],
    cache: Annotated[str | None, typer.Option(help="Folder or URL of a sealed cache.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Manifest to train on.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of its images.")] = None,
    student: Annotated[Path | None, typer.Option(help="Folder of a Hugging Face student.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="runs/RECIPE")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, as in optim.lr=1e-4."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint of --out.")] = True,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what the run costs, and train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print JSON.")] = False,
) -> None:
    """Train a student with LoRA against a teacher cache.

    The same command goes on where a stopped run ended. On several GPUs:
    torchrun --nproc_per_node 8 -m medalign train RECIPE --cache STORE ...
    """
    if as_json and not plan:
        raise typer.BadParameter("--json goes with --plan")
    from .machine import quiet_libraries
    from .recipe.compose import find_recipe
    from .recipe.recipe import Recipe

    source = find_recipe(recipe)
    chosen = Recipe.of(source, override or ())
    quiet_libraries()
    out = out or Path("runs") / source.name
    if plan:
        from .preflight.commands import print_plan

        print_plan(
            chosen,
            cache,
            out,
            student=student,
            manifest=manifest,
            images=images,
            as_json=as_json,
        )
        return
    from .prepare import with_paths
    from .students.tiny import make_demo_student
    from .train import train as run

    if student is None and chosen.student.path == "demo":
        student = out.parent / "demo-student"
        make_demo_student(student)
    chosen = with_paths(chosen, student=student, manifest=manifest, images=images)
    with live_view() as view:
        result = run(
            chosen,
            cache,
            out,
            resume=resume,
            say=view.say,
            report=view.report,
            watch=[view],
        )
    if os.environ.get("RANK", "0") != "0":
        return
    if result.steps < result.of:
        typer.echo(
            f"stopped at step {result.steps} of {result.of}; run the same command "
            f"{'' if resume else 'without --no-resume '}to go on",
            err=True,
        )
        raise typer.Exit(130)
    typer.echo(f"run      {result.out}")
    typer.echo(f"adapter  {result.out / 'adapter'}, of the last step, {result.steps}")
    if result.best is not None:
        typer.echo(f"best     {result.out / 'adapter-best'}, of {result.best}, the lowest")
    if result.skipped:
        record, reason = result.skipped[0]
        typer.echo(
            f"{len(result.skipped)} times a conversation could not be read and was not learnt, "
            f"first record {record!r}: {reason}; all are in {result.out / 'skipped.jsonl'}",
            err=True,
        )
        raise typer.Exit(1)
