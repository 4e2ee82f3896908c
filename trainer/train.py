"""One training run from a recipe to a run folder: check everything, load, train, finish."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..teacher_cache.durable import write_durably
from .agreement import cache_identity
from .batch import Batch
from .checkpoint import load_checkpoint
from .data import Conversations
from .engine import Engine, Ranks
from .environment import environment_of
from .lengths import estimated_lengths
from .loop import Loop, Step
from .objective import Objective
from .order import Lengths, StepOrder
from .prepare import Prepared, Say, describe, prepare, uses_bf16
from .recipe import Recipe, RecipeError
from .run_folder import RunFolder, step_of
from .student import add_adapter, checkpoint_activations, load_base
from .students.spec import student_digest
from .workers import micro_batches


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
    """

    out: Path
    steps: int
    of: int
    started_at: int
    last: Step | None
    skipped: tuple[tuple[str, str], ...] = ()


def train(
    recipe: Recipe,
    cache: Path | str | None,
    out: Path,
    *,
    resume: bool = True,
    say: Say,
    report: Callable[[Step, int], None],
) -> Result:
    """Train, or go on with what `out` holds.

    Args:
        recipe: with `student.path`, `data.manifest` and `data.images` filled in.
        cache: sealed store, or None when alpha and beta are 0.
        out: run folder.
        resume: go on from the newest checkpoint of `out`.
        say: told, on rank 0, what a user wants to know before the first step.
        report: called after every step, on rank 0, with the steps of the whole run.

    Raises:
        ValueError: the input is wrong, see `prepare`.
        TrainingDivergedError: a loss is not finite.
    """
    ranks = Ranks()
    plan = prepare(recipe, cache, ranks.world)
    if ranks.rank == 0:
        describe(plan, say)
    folder = RunFolder(out)
    try:
        return _train_in(folder, plan, ranks, resume=resume, say=say, report=report)
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
) -> Result:
    first, out = ranks.rank == 0, folder.path
    checkpoint = _begin(folder, plan, ranks, resume=resume)
    start = 0 if checkpoint is None else step_of(checkpoint)
    if first and folder.moved is not None:
        say(f"the earlier run is in {folder.moved} now")
    if checkpoint is not None and start >= plan.steps:
        ranks.first(lambda: folder.finish(checkpoint))
        if first:
            say(f"{out} is complete: {start} of {plan.steps} steps; nothing to do")
        return Result(out, start, plan.steps, start, None, _skipped(folder))
    loop = _load(plan, folder, ranks)
    if checkpoint is not None:
        load_checkpoint(checkpoint, loop.engine)
        if first:
            say(f"going on from step {start} of {plan.steps} ({checkpoint})")
    ranks.first(lambda: folder.rewind(start))
    last: list[Step] = []

    def note(step: Step) -> None:
        last[:] = [step]
        report(step, plan.steps)

    done, saved = loop.run(_batches(plan, loop, start), start, note)
    if saved is not None and done >= plan.steps:
        ranks.first(lambda: folder.finish(saved))
    return Result(out, done, plan.steps, start, last[0] if last else None, _skipped(folder))


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
    digest = hashlib.sha256()
    for record in plan.selection.records:
        turns = [(turn.role, turn.text) for turn in record.conversations]
        digest.update(json.dumps([record.id, record.images, turns]).encode())
    data = plan.recipe.data
    return {
        **cache_identity(plan.cache),
        "student": student_digest(plan.student.path),
        "records": digest.hexdigest(),
        "per_step": data.batch_size * data.accumulation * ranks.world,
    }


def _load(plan: Prepared, folder: RunFolder, ranks: Ranks) -> Loop:
    recipe = plan.recipe
    bf16 = uses_bf16(recipe)
    dtype = torch.bfloat16 if bf16 else torch.float32
    base = load_base(plan.student.path, dtype, recipe.student.attention, ranks.device)
    torch.manual_seed(recipe.run.seed)
    student = add_adapter(
        base,
        recipe.loss.layer,
        recipe.lora,
        rotation=recipe.loss.rotation,
        projector=recipe.optim.projector_lr > 0,
    )
    if recipe.student.gradient_checkpointing:
        checkpoint_activations(base)
    student.train()
    student.to(ranks.device)
    engine = Engine(Objective(student, recipe.loss), recipe, ranks, bf16=bf16)
    torch.manual_seed(recipe.run.seed + 1 + ranks.rank)  # dropout must differ between ranks
    about = {
        "medalign": version("medalign"),
        "recipe": recipe.model_dump(mode="json"),
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
        dtype=dtype,
    )


def _batches(plan: Prepared, loop: Loop, start: int) -> Iterator[Batch]:
    data, ranks = plan.recipe.data, loop.engine.ranks
    samples = Conversations(
        plan.selection.records, plan.images, plan.student, data.max_length, plan.cache
    )
    order = StepOrder(
        length=len(samples),
        seed=plan.recipe.run.seed,
        batch_size=data.batch_size,
        accumulation=data.accumulation,
        rank=ranks.rank,
        world=ranks.world,
        start=start,
        stop=plan.steps,
        lengths=_lengths(plan) if data.group_by_length else None,
    )
    pad_id = plan.student.processor.tokenizer.pad_token_id
    pad = 0 if pad_id is None else pad_id
    return micro_batches(
        samples,
        order,
        pad,
        data.workers,
        data.accumulation,
        prefetch=data.prefetch,
        start_method=data.start_method,
    )


def _lengths(plan: Prepared) -> Lengths:
    images = plan.student.encoder.tokens_per_image
    return estimated_lengths(plan.selection.records, images, plan.recipe.data.max_length)
