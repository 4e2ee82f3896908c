"""Where a run's numbers go: JSON lines always, TensorBoard and Weights & Biases on request.

No logger may end a run. A failure is printed once for each logger; it is tried again at the next
step, when the disk may have room again.
"""

import io
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from ...runtime.files import append, write_durably
from ..recipe.recipe import Recipe, RecipeError
from ..recipe.sections import LogSection
from .best_checkpoint import Best
from .folder import RunFolder

Kind = Literal["train", "validation"]
Values = Mapping[str, Any]


class Logger(Protocol):
    """Takes a run's numbers, on rank 0."""

    def log(self, kind: Kind, step: int, values: Values) -> None:
        """Take what a step or an evaluation measured: numbers by name, None where there is none."""

    def saved(self, step: int, best: Best | None) -> None:
        """Take the step that a killed run would resume from, and the best checkpoint so far."""

    def close(self, *, failed: bool) -> None:
        """Write out what is held back."""


class JsonLines:
    """`metrics.jsonl` and `validation.jsonl` of the run folder."""

    def __init__(self, folder: RunFolder) -> None:
        self._append = {"train": folder.append_metrics, "validation": folder.append_validation}

    def log(self, kind: Kind, step: int, values: Values) -> None:  # noqa: ARG002 - it is a value
        """Append a line."""
        self._append[kind](values)

    def saved(self, step: int, best: Best | None) -> None:
        """Nothing is held back."""

    def close(self, *, failed: bool) -> None:
        """Nothing is held back."""


class TensorBoard:
    """An event file below a folder, written as it comes.

    torch's SummaryWriter has a thread, whose errors reach the terminal as tracebacks and beside
    which data workers would be forked.

    Args:
        folder: of the event files; each start of a run adds one.
        start: updates done already; what a killed run wrote of later steps is hidden.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        self._path = folder / f"events.out.tfevents.{time.time_ns():019d}.medalign"
        self._write(file_version="brain.Event:2")
        # Step 0 is measured, not trained: a run that starts again at 0 keeps it.
        begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=start + 1, session_log=begun)

    def log(self, kind: Kind, step: int, values: Values) -> None:
        """Add a point to every curve `KIND/NAME`."""
        points = [
            self._summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in numbers(values).items()
        ]
        self._write(step=step, summary=self._summary(value=points))

    def saved(self, step: int, best: Best | None) -> None:
        """Nothing is held back."""

    def close(self, *, failed: bool) -> None:
        """Nothing is held back."""

    def _write(self, **fields: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        event = self._event(wall_time=time.time(), **fields)
        RecordWriter(record).write(event.SerializeToString())
        append(self._path, record.getvalue())


class WeightsAndBiases:
    """A W&B run that keeps its id over restarts.

    Args:
        folder: of the run; W&B's files go to `wandb/` in it, the id to `wandb.json`.
        recipe: shown as the run's config.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe) -> None:
        import wandb

        note = folder.path / "wandb.json"
        known = json.loads(note.read_text()) if note.is_file() else {}
        run_id = known.get("id") or uuid.uuid4().hex[:8]
        # What was sent cannot be taken back, and a resumed run measures the same again.
        lines = {"train": folder.metrics(), "validation": folder.validation()}
        self._sent = {
            kind: max([*(line["step"] for line in measured), known.get(kind, -1)])
            for kind, measured in lines.items()
        }
        text = json.dumps({"id": run_id, **self._sent}) + "\n"
        write_durably(note, text.encode())
        self._run: Any = wandb.init(
            project=recipe.log.wandb,
            id=run_id,
            resume="allow",
            name=folder.path.name,
            dir=str(folder.path),
            # The variable, where a user set it, is read by W&B itself.
            mode=None if "WANDB_MODE" in os.environ else recipe.log.wandb_mode,
            config=recipe.settings(),
            # stdout belongs to the command's result.
            settings=wandb.Settings(silent=True, console="off"),
        )
        for kind in self._sent:
            self._run.define_metric(f"{kind}/*", step_metric="step")

    def log(self, kind: Kind, step: int, values: Values) -> None:
        """Send a step's numbers, unless they were sent before a restart."""
        if step > self._sent[kind]:
            named = {f"{kind}/{name}": value for name, value in numbers(values).items()}
            self._run.log({"step": step, **named})

    def saved(self, step: int, best: Best | None) -> None:
        """W&B's own process writes everything down at once."""

    def close(self, *, failed: bool) -> None:
        """End the W&B run as finished or failed."""
        self._run.finish(exit_code=int(failed))


def numbers(values: Values) -> dict[str, float]:
    """What can be drawn: numbers, those of groups as `NAME/GROUP`, without the step."""
    drawn: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            drawn |= {f"{name}/{group}": number for group, number in numbers(value).items()}
        elif isinstance(value, int | float) and name != "step":
            drawn[name] = float(value)
    return drawn


class Loggers:
    """Several loggers as one that never fails.

    Args:
        loggers: of this run.
        say: prints a line for the user, once for each logger that fails.
    """

    def __init__(self, loggers: Sequence[Logger], say: Callable[[str], None]) -> None:
        self._loggers = list(loggers)
        self._say = say
        self._failed: set[str] = set()

    def open(self, make: Callable[[], Logger], name: str) -> None:
        """Add a logger; one that cannot be opened is reported and left out."""
        self.attempt(name, lambda: self._loggers.append(make()))

    def log(self, kind: Kind, step: int, values: Values) -> None:
        """Give numbers to every logger."""
        self._all(lambda logger: logger.log(kind, step, values))

    def saved(self, step: int, best: Best | None) -> None:
        """Announce a checkpoint to every logger."""
        self._all(lambda logger: logger.saved(step, best))

    def attempt(self, name: str, write: Callable[[], None]) -> None:
        """Write something down; a failure is printed once for each name, and ends nothing."""
        try:
            write()
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                self._say(f"{name} cannot write; training continues without it: {reason}")

    def _all(self, use: Callable[[Logger], None]) -> None:
        for logger in self._loggers:
            self.attempt(type(logger).__name__, partial(use, logger))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._all(lambda logger: logger.close(failed=kind is not None))


def open_loggers(
    recipe: Recipe,
    folder: RunFolder,
    start: int,
    watch: Sequence[Logger],
    say: Callable[[str], None],
) -> Loggers:
    """Open what the recipe asks for; call before the folder is rewound to `start`.

    Args:
        recipe: of the run.
        folder: of the run.
        start: updates done already.
        watch: further loggers, such as a live view.
        say: prints a line for the user, once for each logger that fails.
    """
    loggers = Loggers([JsonLines(folder), *watch], say)
    if recipe.log.tensorboard:
        loggers.open(lambda: TensorBoard(folder.path / "tensorboard", start), "TensorBoard")
    if recipe.log.wandb is not None:
        loggers.open(lambda: WeightsAndBiases(folder, recipe), "WeightsAndBiases")
    return loggers


def check_installed(log: LogSection) -> None:
    """Refuse a logger whose package is missing, before anything is loaded.

    Raises:
        RecipeError: names the extra to install.
    """
    packages = (("tensorboard", log.tensorboard), ("wandb", log.wandb is not None))
    for package, used in packages:
        if used and not _is_installed(package):
            raise RecipeError(
                f"log.{package} needs a package that is not installed: "
                f"pip install 'medalign[{package}]'"
            )


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    # A folder `wandb` of an earlier run, below the working folder, has no origin.
    return spec is not None and spec.origin is not None
