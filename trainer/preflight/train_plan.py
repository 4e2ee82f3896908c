"""A run's cost: measured by real steps where they can be taken, estimated by formula always."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from ...teacher_cache.schema import TeacherCacheError
from ..data.batch import Batch, Sample, collate
from ..data.dataset import Conversations
from ..distributed.ranks import Ranks
from ..loop import NothingToLearnError
from ..machine import free_disk_bytes, free_memory_bytes
from ..memory import (
    Memory,
    Parameters,
    Stage,
    checkpoint_bytes,
    estimate,
    gpu_seconds,
    step_operations,
)
from ..prepared import Prepared, prepare
from ..recipe.recipe import Recipe
from ..train import samples_of
from .advice import Advice, Case, advise
from .lengths import Lengths, VisualTokens, measure_lengths
from .measure import FullError, Measured, Votes, measure
from .shapes import count_parameters, load_of, settings_of, shape_of

CPU_PARAMETERS: Final = 500_000_000
"""Most parameters of a student whose step is taken on a CPU."""
CPU_SHARE: Final = 0.5
"""Most of the free memory that such a step may take, by formula."""
FULL: Final = "out of memory"
"""How the reason begins when the device was full."""

GPU_BYTES: Final = 80_000_000_000
"""Memory of the GPU that figures by formula are for, where this machine has none."""
GPU_RANKS: Final = 8
"""Ranks of the table of ZeRO stages."""
ESTIMATED_SHARE: Final = 0.9
"""Most of a GPU that a run may take by formula; a measurement may take all of it."""
_TRIED: Final = 4  # how many of the longest conversations are read for one that can be
STAGES: Final[tuple[Stage, ...]] = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How much there is to do.

    Attributes:
        samples: conversations of the training set.
        steps: updates.
        per_step: conversations of an update, over all ranks.
        world: ranks.
    """

    samples: int
    steps: int
    per_step: int
    world: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What the run folder will take.

    Attributes:
        checkpoint: bytes of one.
        most: bytes of the run folder: `run.keep` checkpoints, one being written, the adapter; with
            `validation.keep_best` also the best checkpoint and its adapter.
        free: bytes on the disk of `--out`.
    """

    checkpoint: int
    most: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that `--plan` says.

    Attributes:
        device: name.
        case: what decides memory on a GPU: this machine's, or one of 80 GB in bf16.
        lengths: of the conversations.
        run, disk: of the whole run.
        measured: by real steps, or None.
        not_measured: why there is no measurement, or an empty string.
        gpu_bytes: memory of the GPU that the formula's figures are for.
        gpu_seconds: a step by formula on an H100; None where a GPU was measured.
        stages: memory of one of 8 ranks by ZeRO stage, by formula.
        advice: what the recipe could change; empty where the run fits.
        fits: whether the run fits the device.
    """

    device: str
    case: Case
    lengths: Lengths
    run: Run
    disk: Disk
    measured: Measured | None
    not_measured: str
    gpu_bytes: int
    gpu_seconds: float | None
    stages: dict[Stage, Memory]
    advice: tuple[Advice, ...]
    fits: bool

    @property
    def peak(self) -> int:
        """Bytes of one rank on the GPU that the plan is for, measured if it was."""
        if self.measured is not None and self.gpu_seconds is None:
            return self.measured.taken
        return self.case.memory.total


def make_plan(recipe: Recipe, cache: Path | str | None, out: Path) -> tuple[Prepared, Plan] | None:
    """Find out what a run costs; writes nothing.

    Args:
        recipe: with `student.path`, `data.manifest` and `data.images` filled in.
        cache: sealed store, or None when alpha and beta are 0.
        out: where the run folder would be.

    Returns:
        The run and its plan; None on ranks other than 0.

    Raises:
        ValueError: as training would.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    run = prepare(recipe, cache, world, keep_rows=False)
    visual = VisualTokens(run.student.sight, run.images)
    records = run.selection.records
    lengths = measure_lengths(records, run.student.encoder, recipe.data.max_length, visual)
    samples = samples_of(run)
    longest, batch = _longest(run, samples, lengths)
    parameters = count_parameters(run.student.path, recipe)
    here = _case(run, parameters, batch)
    ranks = Ranks(recipe.run.timeout_minutes)
    measured, reason = attempt(run, samples, longest, here, ranks)
    if ranks.rank:
        return None
    return run, _plan(run, lengths, batch, here, measured, reason, out)


def attempt(
    run: Prepared, samples: Conversations, longest: list[int], here: Case, ranks: Ranks
) -> tuple[Measured | None, str]:
    """Take real steps, or say why not; every rank comes to the same end. All ranks must call.

    Args:
        run: whose student is loaded.
        samples: of the run.
        longest: record numbers of the micro-batch that the peak is measured with.
        here: the run on this machine, by formula.
        ranks: that take the steps.

    Returns:
        The measurement and an empty string, or None and the reason.

    Raises:
        ValueError: as training would.
    """
    votes = Votes(ranks, run.recipe.run.timeout_minutes)
    gpu = torch.cuda.is_available()
    # Free memory is another number on every rank, and a rank alone would wait for the others.
    if reason := votes.first("" if gpu else _too_large(here)):
        return None, reason
    try:
        return measure(run, samples, longest, ranks, votes), ""
    except FullError as error:
        return None, f"{FULL}: {error}"


def _too_large(here: Case) -> str:
    """Why a step is not taken on this CPU; an empty string if it is."""
    total = here.parameters.frozen + here.parameters.trained
    if total > CPU_PARAMETERS:
        return (
            f"no GPU here, and the student has {total / 1e9:.1f} billion parameters; on a CPU a "
            f"step is taken up to {CPU_PARAMETERS / 1e9:.1f} billion"
        )
    needed, free = here.memory.total, free_memory_bytes()
    if needed > CPU_SHARE * free:
        return (
            f"no GPU here, and the step would need {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB "
            f"free memory; on a CPU it is taken up to {CPU_SHARE:.0%} of that"
        )
    return ""


def _plan(
    run: Prepared,
    lengths: Lengths,
    batch: Batch,
    here: Case,
    measured: Measured | None,
    reason: str,
    out: Path,
) -> Plan:
    recipe, gpu = run.recipe, run.derived.gpu
    case = here
    if not gpu:
        on_gpu = replace(run, derived=run.derived.on_gpu(recipe))
        case = _case(on_gpu, here.parameters, batch)
    whole = torch.cuda.get_device_properties(0).total_memory if gpu else GPU_BYTES
    peak = measured.taken if gpu and measured is not None else case.memory.total
    room = whole if gpu and measured is not None else round(ESTIMATED_SHARE * whole)
    fits = peak <= room and not reason.startswith(FULL)
    size = checkpoint_bytes(here.parameters.trained, here.chosen.number_bytes)
    adapter = here.parameters.trained * here.chosen.number_bytes
    best = int(recipe.validation.keep_best is not None)
    operations = step_operations(case.parameters, case.load, case.chosen)
    seconds = gpu_seconds(operations * run.derived.micro_steps)
    return Plan(
        device=torch.cuda.get_device_name(0) if gpu else "CPU",
        case=case,
        lengths=lengths,
        run=Run(
            samples=len(run.selection.records),
            steps=run.steps,
            per_step=run.derived.per_step,
            world=run.derived.world,
        ),
        disk=Disk(
            checkpoint=size,
            most=(recipe.run.keep + 1 + best) * size + (1 + best) * adapter,
            free=free_disk_bytes(out),
        ),
        measured=measured,
        not_measured=reason,
        gpu_bytes=whole,
        gpu_seconds=None if gpu and measured is not None else seconds,
        stages={stage: _at_stage(case, stage) for stage in STAGES},
        advice=() if fits else advise(recipe, case, peak, room),
        fits=fits,
    )


def _at_stage(case: Case, stage: Stage) -> Memory:
    chosen = replace(case.chosen, stage=stage, world=GPU_RANKS)
    return estimate(case.parameters, case.shape, case.load, chosen)


def _case(run: Prepared, parameters: Parameters, batch: Batch) -> Case:
    return Case(
        parameters=parameters,
        shape=shape_of(run.student),
        load=load_of(batch),
        chosen=settings_of(run),
    )


def _longest(run: Prepared, samples: Conversations, lengths: Lengths) -> tuple[list[int], Batch]:
    """Record numbers and micro-batch of the longest conversations that can be read."""
    size = run.recipe.data.batch_size
    numbers: list[int] = []
    readable: list[Sample] = []
    reasons = [reason for _, reason in (*lengths.too_long, *lengths.unusable)]
    for number in lengths.longest(_TRIED * size):
        if len(readable) == size:
            break
        sample = samples[number]
        if sample.refused:
            raise TeacherCacheError(sample.refused)
        if sample.skipped:
            reasons.append(sample.skipped)
            continue
        numbers.append(number)
        readable.append(sample)
    if not readable:
        raise NothingToLearnError(f"no conversation can be used, for instance {reasons[0]}")
    # A set smaller than a batch is seen more than once.
    repeat = -(-size // len(readable))
    return (numbers * repeat)[:size], collate((readable * repeat)[:size], run.student.pad_id)
