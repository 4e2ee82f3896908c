"""Real steps of a run, measured: memory of the longest batch, time of the run's first ones."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ...teacher_cache.schema import TeacherCacheError
from ..batch import Batch
from ..data import Conversations
from ..engine import Engine
from ..host import memory_bytes
from ..load_engine import load_engine, precision
from ..memory import Memory
from ..memory_used import peak_bytes
from ..objective import Share
from ..order import StepOrder
from ..prepare import Prepared
from ..ranks import Ranks
from ..run_batches import read_ahead, step_order
from . import held
from .vote import Votes

TIMED = 2
"""Steps that are timed, after one of the longest conversations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Time of a step, in seconds: mean over the timed steps, slowest rank.

    Attributes:
        data_wait: waiting for batches, while others are read ahead.
        passes: forward and backward of all micro-batches.
        update: of the parameters.
    """

    data_wait: float
    passes: float
    update: float

    @property
    def step(self) -> float:
        """The whole step."""
        return self.data_wait + self.passes + self.update


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What real steps took.

    Attributes:
        memory: peak of one rank by part.
        taken: bytes that this process took of the device, what its allocator holds included.
        device_bytes: memory of the device.
        before: bytes of this process before the student was loaded; 0 on a GPU.
        seconds: of a step.
        skipped: (record id, reason) of conversations that could not be read.
    """

    memory: Memory
    taken: int
    device_bytes: int
    before: int
    seconds: Seconds
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PlanOrder(Sampler[list[int]]):
    """First a step of the longest conversations, then the run's own first steps."""

    longest: tuple[int, ...]
    accumulation: int
    own: StepOrder

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.accumulation):
            yield list(self.longest)
        yield from self.own

    def __len__(self) -> int:
        return self.accumulation + len(self.own)


def measure(
    plan: Prepared, samples: Conversations, longest: list[int], ranks: Ranks, votes: Votes
) -> Measured:
    """Load the real student and take real steps; nothing is written. All ranks must call.

    Raises:
        ValueError: as training would: the student cannot be loaded, an image changed.
        FullError: a device is too small.
    """
    own = step_order(plan, len(samples), ranks, 0, TIMED)
    order = PlanOrder(tuple(longest), plan.recipe.data.micro_steps, own)
    batches = read_ahead(plan, samples, order)
    before = 0 if ranks.device.type == "cuda" else peak_bytes()
    _, engine = votes.together(lambda: load_engine(plan.recipe, plan.student.path, ranks))
    stepper = _Stepper(engine, precision(plan.recipe), plan.recipe.data.micro_steps, votes)
    with closing(batches):
        parts = stepper.longest(batches)
        timed = [stepper.timed(batches) for _ in range(TIMED)]
    totals = ranks.gather(timed)
    taken, whole = _taken(ranks.device)
    return Measured(
        memory=Memory(**parts, rest=max(0, peak_bytes() - sum(parts.values()))),
        taken=taken,
        device_bytes=whole,
        before=before,
        seconds=Seconds(
            data_wait=_slowest(totals, 0), passes=_slowest(totals, 1), update=_slowest(totals, 2)
        ),
        skipped=tuple(item for skipped in ranks.gather(stepper.skipped) for item in skipped),
    )


class _Stepper:
    """Steps of an engine, as the training loop takes them, with a watch in hand."""

    def __init__(self, engine: Engine, dtype: torch.dtype, accumulation: int, votes: Votes) -> None:
        self.engine = engine
        self.votes = votes
        self.device = engine.ranks.device
        self.dtype = dtype
        self.accumulation = accumulation
        self.skipped: list[tuple[str, str]] = []

    def longest(self, batches: Iterator[Batch]) -> dict[str, int]:
        """Take the step of the longest conversations; bytes of all parts of memory but the rest."""
        micro = self._read(batches)
        share = self._share(micro)
        parts = held.weights(self.engine)
        activations = 0
        for batch in micro:
            batch = batch.to(self.device, self.dtype)
            before = _allocated(self.device)
            with held.Kept(self.engine.engine.module) as kept:
                loss = self._forward(batch, share)
            grown = _allocated(self.device) - before if self.device.type == "cuda" else kept.bytes
            activations = max(activations, grown)
            self.votes.together(partial(self.engine.backward, loss))
            parts["gradients"] = held.gradients(self.engine)
            self.votes.together(self.engine.step)
        parts["optimiser"] = held.optimiser(self.engine)
        teacher = max(sum(t.nbytes for t in held.tensors_of(b.teacher)) for b in micro)
        return parts | {"activations": activations, "teacher": teacher}

    def timed(self, batches: Iterator[Batch]) -> tuple[float, float, float]:
        """Take one step; seconds of data wait, of the passes, and of the update."""
        begun = self._now()
        micro = self._read(batches)
        share = self._share(micro)
        waited = self._now() - begun
        passes = update = 0.0
        for batch in micro:
            start = self._now()
            loss = self._forward(batch.to(self.device, self.dtype), share)
            self.votes.together(partial(self.engine.backward, loss))
            middle = self._now()
            self.votes.together(self.engine.step)
            passes += middle - start
            update += self._now() - middle
        return waited, passes, update

    def _forward(self, batch: Batch, share: Share) -> Tensor:
        # A vote of its own: most of what fills a device does so before the ranks meet in backward.
        loss, _ = self.votes.together(partial(self.engine, batch, share))
        return loss

    def _read(self, batches: Iterator[Batch]) -> list[Batch]:
        micro = [next(batches) for _ in range(self.accumulation)]
        refused = [reason for batch in micro for reason in batch.refused]
        if reason := self.votes.first(refused[0] if refused else ""):
            raise TeacherCacheError(reason)
        self.skipped += [item for batch in micro for item in batch.skipped]
        return micro

    def _share(self, micro: list[Batch]) -> Share:
        tokens, images = self.engine.ranks.sum(
            [
                float(sum(batch.answer_tokens for batch in micro)),
                float(sum(batch.teacher_images for batch in micro)),
            ]
        )
        return Share.of(int(tokens), int(images), len(micro) * self.engine.ranks.world)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _slowest(ranks: list[list[tuple[float, ...]]], part: int) -> float:
    return max(sum(step[part] for step in steps) / len(steps) for steps in ranks)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _taken(device: torch.device) -> tuple[int, int]:
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_reserved(device), whole
    return peak_bytes(), memory_bytes()
