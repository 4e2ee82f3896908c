"""One training run from a recipe to a run folder: check everything, load, train, finish."""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from ..runtime.files import write_durably
from ..teacher_cache.reader import TeacherCache
from .data.batch import Batch
from .data.dataset import Conversations
from .data.loader import micro_batches
from .data.order import Lengths, StepOrder, estimated_lengths
from .distributed.engine import Engine
from .distributed.ranks import Ranks, sharded_loading
from .loop import Loop, Step
from .machine import device_memory_errors
from .objective import Objective
from .prepared import Prepared, Say, describe, prepare
from .recipe.recipe import Recipe, RecipeError
from .run.best_checkpoint import Best
from .run.checkpoint import load_checkpoint
from .run.checkpoint_files import step_of
from .run.environment import environment_of
from .run.folder import RunFolder
from .run.loggers import Logger, Loggers, open_loggers
from .student import add_adapter, checkpoint_activations, load_base
from .students.spec import student_digest
from .validation import HeldOut

Report = Callable[[Step, int], None]
"""Takes a step, and the steps of the whole run."""


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
    report: Report,
    watch: Sequence[Logger] = (),
) -> Result:
    """Train, or resume what `out` holds.

    Args:
        recipe: with `student.path`, `data.manifest` and `data.images` filled in.
        cache: sealed store, or None when alpha and beta are 0.
        out: run folder.
        resume: start from the newest checkpoint of `out`.
        say: prints a line for the user; called on rank 0.
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


def load_engine(plan: Prepared, ranks: Ranks) -> tuple[Any, Engine]:
    """Load a student, give it its adapter, and put it in an engine, ready for a first step."""
    recipe, derived = plan.recipe, plan.derived
    sharded = derived.stage == 3
    with sharded_loading(derived.zero, enabled=sharded):
        base = load_base(
            plan.student.path,
            derived.dtype,
            derived.attention,
            ranks.device,
            sharded=sharded,
            quantize=recipe.student.quantize,
        )
        # LoRA's random start: the same on every rank, whatever was drawn before.
        torch.manual_seed(recipe.run.seed)
        model = adapted(base, recipe)
    if recipe.student.gradient_checkpointing:
        checkpoint_activations(base)
    model.train()
    model.to(ranks.device)
    objective = Objective(model, recipe.loss)
    return model, Engine(objective, recipe.optim, ranks, derived.zero)


def adapted(base: Any, recipe: Recipe) -> Any:
    """Give a base model what the recipe trains; also of a model on the meta device."""
    return add_adapter(
        base,
        recipe.loss.layer,
        recipe.lora,
        rotation=recipe.loss.rotation,
        projector=recipe.optim.projector_lr > 0,
    )


def samples_of(plan: Prepared) -> Conversations:
    """The training set of a run."""
    return Conversations(
        plan.selection.records, plan.images, plan.student, plan.recipe.data.max_length, plan.cache
    )


def step_order(plan: Prepared, length: int, ranks: Ranks, start: int, stop: int) -> StepOrder:
    """Which of `length` samples a rank reads for steps `start` to `stop`."""
    data = plan.recipe.data
    return StepOrder(
        length=length,
        seed=plan.recipe.run.seed,
        batch_size=data.batch_size,
        accumulation=plan.derived.micro_steps,
        rank=ranks.rank,
        world=ranks.world,
        start=start,
        stop=stop,
        lengths=_lengths(plan) if data.group_by_length else None,
    )


def read_ahead(
    plan: Prepared, samples: Conversations, order: Sampler[list[int]]
) -> Generator[Batch]:
    """Micro-batches in an order, read as the recipe says."""
    data = plan.recipe.data
    return micro_batches(
        samples,
        order,
        plan.student.pad_id,
        data.workers,
        plan.derived.micro_steps,
        prefetch=data.prefetch,
        start_method=data.start_method,
    )


def _lengths(plan: Prepared) -> Lengths:
    images = plan.student.encoder.tokens_per_image
    return estimated_lengths(plan.selection.records, images, plan.recipe.data.max_length)


def _train_in(
    folder: RunFolder,
    plan: Prepared,
    ranks: Ranks,
    *,
    resume: bool,
    say: Say,
    report: Report,
    watch: Sequence[Logger],
) -> Result:
    first, out = ranks.rank == 0, folder.path
    # By rank 0 alone: it reads a megabyte of every weight file, and all records.
    identity = ranks.first(lambda: _identity(plan))
    checkpoint = _begin(folder, plan, identity, ranks, resume=resume)
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
        with device_memory_errors(plan.recipe, "loading the student"):
            student, engine = load_engine(plan, ranks)
            loop = Loop(
                plan=plan,
                engine=engine,
                student=student,
                folder=folder,
                about=_about(plan, identity),
                loggers=loggers,
                held_out=held_out,
            )
            _restore(loop, checkpoint, start, say)
        samples = samples_of(plan)
        order = step_order(plan, len(samples), ranks, start, plan.steps)
        doing = "measuring held-out conversations, or saving"
        with (
            device_memory_errors(plan.recipe, doing),
            closing(read_ahead(plan, samples, order)) as batches,
        ):
            done, saved = loop.run(batches, start, note)
    newest, best = saved or checkpoint, None
    if newest is not None and done >= plan.steps:
        best = _finish(folder, newest, held_out, ranks)
    ended = last[0] if last else None
    return Result(out, done, plan.steps, start, ended, _skipped(folder), best)


def _identity(plan: Prepared) -> dict[str, Any]:
    """What must be equal, beside the recipe, for a resumed run to be the same run."""
    return {
        **_cache_identity(plan.cache),
        "student": student_digest(plan.student.path),
        "records": plan.selection.digest(),
        "per_step": plan.derived.per_step,
        # student.dtype may be auto, which is not the same on every machine.
        "precision": plan.derived.precision,
    }


def _about(plan: Prepared, identity: dict[str, Any]) -> dict[str, Any]:
    """What stands in `medalign.json` beside every adapter."""
    return {
        "medalign": version("medalign"),
        "recipe": plan.recipe.settings(),
        **_cache_identity(plan.cache),
        "expert": None if plan.cache is None else plan.cache.card.expert.name,
        "alpha": "black" if plan.cache is None else plan.cache.card.alpha,
        "student": identity["student"],
    }


def _cache_identity(cache: TeacherCache | None) -> dict[str, str | None]:
    if cache is None:
        return {"cache": None}
    return {"cache": cache.fingerprint, "cache_content": cache.content_hash}


def _begin(
    folder: RunFolder, plan: Prepared, identity: dict[str, Any], ranks: Ranks, *, resume: bool
) -> Path | None:
    """Let rank 0 open the folder; all ranks start where it says, or stop together."""

    def begin() -> str | None:
        newest = folder.begin(plan.recipe, identity, resume=resume)
        environment = json.dumps(environment_of(ranks, plan.cache), indent=2) + "\n"
        write_durably(folder.path / "environment.json", environment.encode())
        return None if newest is None else newest.name

    name = ranks.first(begin)
    if name is None:
        return None
    checkpoint = folder.checkpoints / name
    blind = [rank for rank, sees in enumerate(ranks.gather(checkpoint.is_dir())) if not sees]
    if blind:
        raise RecipeError(f"ranks {blind} do not see {checkpoint}; --out must be a shared folder")
    return checkpoint


def _held_out(plan: Prepared) -> HeldOut | None:
    if plan.held_out is None:
        return None
    data = plan.recipe.data
    return HeldOut(
        samples=Conversations(
            plan.held_out.records, plan.held_out_images, plan.student, data.max_length, plan.cache
        ),
        records=plan.held_out.digest(),
        recipe=plan.recipe,
        steps=plan.steps,
        pad_id=plan.student.pad_id,
    )


def _restore(loop: Loop, checkpoint: Path | None, start: int, say: Say) -> None:
    """Bring model, optimiser and run folder to where the checkpoint was written."""
    ranks = loop.engine.ranks
    if checkpoint is not None:
        load_checkpoint(checkpoint, loop.engine)
        if ranks.rank == 0:
            say(f"resuming at step {start} of {loop.plan.steps} ({checkpoint})")
    ranks.first(lambda: loop.folder.rewind(start))
    if checkpoint is not None:
        loop.log_saved(start)


def _finish(folder: RunFolder, last: Path, held_out: HeldOut | None, ranks: Ranks) -> Best | None:
    """Put the adapters where users look for them; return the checkpoint of the best one."""
    contest = None if held_out is None else held_out.contest

    def copy() -> Best | None:
        best = folder.best(contest)
        folder.finish(last, best)
        return best

    return ranks.first(copy)


def _skipped(folder: RunFolder) -> tuple[tuple[str, str], ...]:
    return tuple((str(line["id"]), str(line["reason"])) for line in folder.skipped())
