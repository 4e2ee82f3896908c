"""What is exported: which adapter of a run, on which student, and what is known of both."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.pixels import Alpha
from ..recipe.recipe import Recipe
from ..run.checkpoint_files import check_bytes, is_complete, step_of
from ..run.folder import RunFolder
from ..student import read_identity
from ..students.spec import StudentError, read_config, student_digest


class ExportError(ValueError):
    """A run cannot be exported as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """An adapter and all that its run recorded.

    Attributes:
        run: the run folder.
        adapter: the adapter's folder.
        step: updates that it had; None for a finished run whose checkpoints are gone.
        finished: whether the run was.
        student: the base model's folder.
        recipe: of the run.
        identity: the adapter's `medalign.json`.
        environment: the run's `environment.json`, empty if it is missing.
        metrics: the last line of `metrics.jsonl` up to that step, empty without any.
    """

    run: Path
    adapter: Path
    step: int | None
    finished: bool
    student: Path
    recipe: Recipe
    identity: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def alpha(self) -> Alpha:
        """Colour behind transparent pixels, as the run was trained."""
        alpha: Alpha = self.identity["alpha"]
        return alpha


def find_origin(run: Path, checkpoint: str | None = None, student: Path | None = None) -> Origin:
    """Resolve a run folder.

    Args:
        run: the folder that `medalign train` wrote.
        checkpoint: `step-N`, `last` or `best`; None takes the finished adapter, else the newest
            complete checkpoint.
        student: where the student is now, if it moved since the run.

    Raises:
        ExportError: no run, no such checkpoint, or another student than the run's.
        RecipeError: a file of the checkpoint changed since it was written.
    """
    if not (run / "recipe.yaml").is_file():
        raise ExportError(f"{run} is no run folder: it has no recipe.yaml")
    folder = RunFolder(run)
    adapter, step = _adapter(folder, checkpoint)
    identity = read_identity(adapter)
    written = identity["recipe"]["student"]["path"]
    base = student or (None if written is None else Path(written))
    if base is None or not base.is_dir():
        raise ExportError(f"the student of {run} is not at {base}; give --student DIR")
    _require_llava(base)
    if student_digest(base) != identity["student"]:
        raise ExportError(
            f"{base} is not the student that {run} was trained on; give --student DIR"
        )
    return Origin(
        run=run,
        adapter=adapter,
        step=step,
        finished=folder.adapter.is_dir(),
        student=base,
        recipe=Recipe.from_yaml(run / "recipe.yaml"),
        identity=identity,
        environment=_environment(run),
        metrics=_metrics(folder, step),
    )


def _adapter(folder: RunFolder, checkpoint: str | None) -> tuple[Path, int | None]:
    if checkpoint is None and folder.adapter.is_dir():
        newest = folder.newest()
        return folder.adapter, None if newest is None else step_of(newest)
    path = folder.newest()
    if checkpoint not in (None, "last"):
        path = folder.checkpoints / str(checkpoint)
        if path.parent != folder.checkpoints or not is_complete(path):
            complete = filter(is_complete, folder.checkpoints.glob("step-*"))
            names = ", ".join(step.name for step in sorted(complete, key=step_of)) or "none"
            raise ExportError(
                f"{folder.path} has no complete checkpoint {checkpoint!r}; there are: {names}"
            )
    if path is None:
        raise ExportError(f"{folder.path} has nothing to export: no checkpoint was written yet")
    path = path.resolve()  # `best` is a link
    check_bytes(path)
    return path / "adapter", step_of(path)


def _require_llava(student: Path) -> None:
    """Refuse families that no export is written for."""
    try:
        config = read_config(student)
    except StudentError as error:
        raise ExportError(str(error)) from error
    if config.model_type != "llava":
        raise ExportError(
            f"{student} is a {config.model_type!r} student; only `llava` students can be exported. "
            "The adapter itself loads with medalign.trainer.student.load_student"
        )


def _environment(run: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((run / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return values


def _metrics(folder: RunFolder, step: int | None) -> dict[str, Any]:
    lines = [line for line in folder.metrics() if step is None or line["step"] <= step]
    return lines[-1] if lines else {}
