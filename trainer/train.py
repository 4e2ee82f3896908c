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
from .data.batch import Batch
from .data.dataset import Conversations
from .data.loader import micro_batches
from .data.order import Lengths, StepOrder, estimated_lengths
from .distributed.engine import Engine
from .distributed.ranks import Ranks, sharded_loading
from .distributed.zero_config import zero_config, zero_stage
from .loop import Loop, Step
from .memory import explained
from .objective import Objective
from .prepared import (
    Prepared,
    Say,
    attention_kernel,
    cache_identity,
    describe,
    prepare,
    records_digest,
    uses_bf16,
)
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


def load_engine(recipe: Recipe, student: Path, ranks: Ranks) -> tuple[Any, Engine]:
    """Load a student, give it its adapter, and put it in an engine, ready for a first step."""
    bf16, sharded = uses_bf16(recipe), zero_stage(recipe) == 3
    with sharded_loading(zero_config(recipe, bf16=bf16, world=ranks.world), enabled=sharded):
        base = load_base(
            student,
            precision(recipe),
            attention_kernel(recipe, student),
            ranks.device,
            sharded=sharded,
            quantize=recipe.student.quantize,
        )
        torch.manual_seed(recipe.run.seed)
        model = adapted(base, recipe)
    if recipe.student.gradient_checkpointing:
        checkpoint_activations(base)
    model.train()
    model.to(ranks.device)
    objective = Objective(model, recipe.loss)
    return model, Engine(objective, recipe, ranks, bf16=bf16)


def adapted(base: Any, recipe: Recipe) -> Any:
    """Give a base model what the recipe trains; also of a model on the meta device."""
    return add_adapter(
        base,
        recipe.loss.layer,
        recipe.lora,
        rotation=recipe.loss.rotation,
        projector=recipe.optim.projector_lr > 0,
    )


def precision(recipe: Recipe) -> torch.dtype:
    """Type of weights, activations and pixels of a run here."""
    return torch.bfloat16 if uses_bf16(recipe) else torch.float32


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
        accumulation=data.micro_steps,
        rank=ranks.rank,
        world=ranks.world,
        start=start,
        stop=stop,
        lengths=_lengths(plan) if data.group_by_length else None,
    )


def _lengths(plan: Prepared) -> Lengths:
    images = plan.student.encoder.tokens_per_image
    return estimated_lengths(plan.selection.records, images, plan.recipe.data.max_length)


def read_ahead(
    plan: Prepared, samples: Conversations, order: Sampler[list[int]]
) -> Generator[Batch]:
    """Micro-batches in an order, read as the recipe says."""
    data = plan.recipe.data
    return micro_batches(
        samples,
        order,
        pad_id(plan),
        data.workers,
        data.micro_steps,
        prefetch=data.prefetch,
        start_method=data.start_method,
    )


def pad_id(plan: Prepared) -> int:
    """Token of the padding, which is never attended to."""
    found = plan.student.processor.tokenizer.pad_token_id
    return 0 if found is None else int(found)


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
