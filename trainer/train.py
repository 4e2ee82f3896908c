"""One training run from a recipe to a run folder: check everything, load, train, finish."""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..teacher_cache.durable import write_durably
from .agreement import cache_identity, records_digest
from .batch import Batch
from .checkpoint import load_checkpoint
from .checkpoint_mark import step_of
from .contest import Best
from .data import Conversations
from .device_memory import explained
from .environment import environment_of
from .held_out import HeldOut
from .load_engine import load_engine, precision
from .loggers import Logger, Loggers, open_loggers
from .loop import Loop, Step
from .prepare import Prepared, Say, describe, prepare, uses_bf16
from .ranks import Ranks
from .recipe import Recipe, RecipeError
from .run_batches import pad_id, read_ahead, samples_of, step_order
from .run_folder import RunFolder
from .students.spec import student_digest


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended.

    Attributes:
        out: run folder.
        steps: updates done.
        of: updates of the whole run.
        started_at: updates that were done before.
        last: what the last step measured; None when there was nothing to do.
        skipped: (record id, reason) of conversations that carried no weight, one entry a step.
        best: the checkpoint whose adapter is in `adapter-best`; None keeps no best one.
    """

    out: Path
    steps: int
    of: int
    started_at: int
    last: Step | None
    skipped: tuple[tuple[str, str], ...] = ()
    best: Best | None = None


def train(
    recipe: Recipe,
    cache: Path | str | None,
    out: Path,
    *,
    resume: bool = True,
    say: Say,
    report: Callable[[Step, int], None],
    watch: Sequence[Logger] = (),
) -> Result:
    """Train, or go on with what `out` holds.

    Args:
        recipe: with `student.path`, `data.manifest` and `data.images` filled in.
        cache: sealed store, or None when alpha and beta are 0.
        out: run folder.
        resume: go on from the newest checkpoint of `out`.
        say: told, on rank 0, what a user wants to know before the first step.
        report: called after every step, on rank 0, with the steps of the whole run.
        watch: loggers beside those of the recipe, such as a live view.

    Raises:
        ValueError: the input is wrong, see `prepare`.
        TrainingDivergedError: a loss is not finite.
    """
    ranks = Ranks(recipe.run.timeout_minutes)
    plan = prepare(recipe, cache, ranks.world)
    if ranks.rank == 0:
        describe(plan, say)
    folder = RunFolder(out)
    try:
        return _train_in(folder, plan, ranks, resume=resume, say=say, report=report, watch=watch)
    finally:
        folder.release()


def _train_in(
    folder: RunFolder,
    plan: Prepared,
    ranks: Ranks,
    *,
    resume: bool,
    say: Say,
    report: Callable[[Step, int], None],
    watch: Sequence[Logger],
) -> Result:
    first, out = ranks.rank == 0, folder.path
    checkpoint = _begin(folder, plan, ranks, resume=resume)
    start = 0 if checkpoint is None else step_of(checkpoint)
    held_out = _held_out(plan)
    if first and folder.moved is not None:
        say(f"the earlier run is in {folder.moved} now")
    lacking = held_out is not None and held_out.is_lacking(start, folder, ranks)
    if checkpoint is not None and start >= plan.steps and not lacking:
        best = _finish(folder, checkpoint, held_out, ranks)
        if first:
            say(f"{out} is complete: {start} of {plan.steps} steps; nothing to do")
        return Result(out, start, plan.steps, start, None, _skipped(folder), best)
    last: list[Step] = []

    def note(step: Step) -> None:
        last[:] = [step]
        report(step, plan.steps)

    loggers = Loggers((), say)
    if first:
        loggers = open_loggers(plan.recipe, folder, start, watch, say)
    with loggers:
        with explained(plan.recipe, "loading the student"):
            loop = _load(plan, folder, ranks, loggers, held_out)
            _restore(loop, checkpoint, start, say)
        told = explained(plan.recipe, "measuring held-out conversations, or saving")
        with told, closing(_batches(plan, loop, start)) as batches:
            done, saved = loop.run(batches, start, note)
    newest, best = saved or checkpoint, None
    if newest is not None and done >= plan.steps:
        best = _finish(folder, newest, held_out, ranks)
    ended = last[0] if last else None
    return Result(out, done, plan.steps, start, ended, _skipped(folder), best)


def _restore(loop: Loop, checkpoint: Path | None, start: int, say: Say) -> None:
    """Bring model, optimiser and run folder to where the checkpoint was written."""
    ranks = loop.engine.ranks
    if checkpoint is not None:
        load_checkpoint(checkpoint, loop.engine)
        if ranks.rank == 0:
            say(f"going on from step {start} of {loop.steps} ({checkpoint})")
    ranks.first(lambda: loop.folder.rewind(start))
    if checkpoint is not None:
        loop.tell_saved(start)


def _finish(folder: RunFolder, last: Path, held_out: HeldOut | None, ranks: Ranks) -> Best | None:
    """Put the adapters where users look for them; say whose the best one is."""
    contest = None if held_out is None else held_out.contest

    def copy() -> Best | None:
        best = folder.best(contest)
        folder.finish(last, best)
        return best

    return ranks.first(copy)


def _skipped(folder: RunFolder) -> tuple[tuple[str, str], ...]:
    return tuple((str(line["id"]), str(line["reason"])) for line in folder.skipped())


def _begin(folder: RunFolder, plan: Prepared, ranks: Ranks, *, resume: bool) -> Path | None:
    """Let rank 0 open the folder; all ranks start where it says, or stop together."""

    def begin() -> str | None:
        found = folder.begin(plan.recipe, _identity(plan, ranks), resume=resume)
        environment = json.dumps(environment_of(ranks, plan.cache), indent=2) + "\n"
        write_durably(folder.path / "environment.json", environment.encode())
        return None if found is None else found.name

    name = ranks.first(begin)
    if name is None:
        return None
    checkpoint = folder.checkpoints / name
    blind = [rank for rank, seen in enumerate(ranks.gather(checkpoint.is_dir())) if not seen]
    if blind:
        raise RecipeError(f"ranks {blind} do not see {checkpoint}; --out must be a shared folder")
    return checkpoint


def _identity(plan: Prepared, ranks: Ranks) -> dict[str, Any]:
    """What must be equal, beside the recipe, for a resumed run to be the same run."""
    data = plan.recipe.data
    return {
        **cache_identity(plan.cache),
        "student": student_digest(plan.student.path),
        "records": records_digest(plan.selection.records),
        "per_step": data.batch_size * data.micro_steps * ranks.world,
        # student.dtype may be auto, which is not the same on every machine.
        "precision": "bf16" if uses_bf16(plan.recipe) else "fp32",
    }


def _load(
    plan: Prepared, folder: RunFolder, ranks: Ranks, loggers: Loggers, held_out: HeldOut | None
) -> Loop:
    recipe = plan.recipe
    student, engine = load_engine(recipe, plan.student.path, ranks)
    about = {
        "medalign": version("medalign"),
        "recipe": recipe.settings(),
        **cache_identity(plan.cache),
        "expert": None if plan.cache is None else plan.cache.card.expert.name,
        "alpha": "black" if plan.cache is None else plan.cache.card.alpha,
        "student": student_digest(plan.student.path),
    }
    return Loop(
        engine=engine,
        student=student,
        recipe=recipe,
        folder=folder,
        samples=len(plan.selection.records),
        steps=plan.steps,
        about=about,
        dtype=precision(recipe),
        loggers=loggers,
        held_out=held_out,
    )


def _batches(plan: Prepared, loop: Loop, start: int) -> Generator[Batch]:
    samples = samples_of(plan)
    order = step_order(plan, len(samples), loop.engine.ranks, start, plan.steps)
    return read_ahead(plan, samples, order)


def _held_out(plan: Prepared) -> HeldOut | None:
    if plan.held_out is None:
        return None
    recipe, records = plan.recipe, plan.held_out.records
    samples = Conversations(
        records, plan.held_out_images, plan.student, recipe.data.max_length, plan.cache
    )
    return HeldOut(
        samples=samples,
        records=records_digest(records),
        recipe=recipe,
        steps=plan.steps,
        pad_id=pad_id(plan),
    )
