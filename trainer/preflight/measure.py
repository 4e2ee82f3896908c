"""Real steps of a run, measured: memory of the longest batch, time of the run's first ones."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ...teacher_cache.schema import TeacherCacheError
from ..data.batch import Batch
from ..data.dataset import Conversations
from ..data.order import StepOrder
from ..distributed.engine import Engine
from ..distributed.ranks import RankError, Ranks
from ..machine import memory_bytes, of_bytes, peak_bytes
from ..memory import Memory
from ..objective import Share
from ..prepared import Prepared
from ..students.spec import StudentError
from ..train import load_engine, read_ahead, step_order

T = TypeVar("T")

TIMED = 2
"""Steps that are timed, after one of the longest conversations."""


def weight_bytes(engine: Engine) -> dict[str, int]:
    """Bytes of frozen and of trained weights on this rank."""
    frozen: list[Tensor] = []
    trained: list[Tensor] = []
    for parameter in engine.engine.module.parameters():
        here = getattr(parameter, "ds_tensor", parameter)  # ZeRO 3: this rank's part
        (trained if parameter.requires_grad else frozen).append(here)
    return {"frozen": storage_bytes(frozen), "trained": storage_bytes(trained)}


def gradient_bytes(engine: Engine) -> int:
    """Bytes of gradients, as they are between the backward pass and the update."""
    optimizer = engine.optimizer
    # Names inside DeepSpeed's ZeRO optimisers: where a release renames one, its bytes are counted
    # as "the rest" of the peak, and the tests of the plan say so.
    grads = [p.grad for p in engine.engine.module.parameters()]
    for group in dict(getattr(optimizer, "averaged_gradients", {})).values():
        grads += group or ()
    grads.append(getattr(optimizer, "grad_partitions_flat_buffer", None))
    return storage_bytes(grad for grad in grads if isinstance(grad, Tensor))


def optimiser_bytes(engine: Engine) -> int:
    """Bytes of Adam's moments, and of float32 weights that are not the model's own."""
    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
    own = {_storage(p) for p in engine.engine.module.parameters()}
    # ZeRO empties Adam's list of parameters between updates, but keeps its copies here.
    copies = [
        *(p for group in adam.param_groups for p in group["params"]),
        *getattr(engine.optimizer, "single_partition_of_fp32_groups", ()),
        *getattr(engine.optimizer, "fp32_partitioned_groups_flat", ()),
    ]
    moments = [value for state in adam.state.values() for value in state.values()]
    tensors = [t for t in (*copies, *moments) if isinstance(t, Tensor) and t.ndim]
    return storage_bytes(tensor for tensor in tensors if _storage(tensor) not in own)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind tensors."""
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))


class SavedTensors:
    """While entered, counts what autograd saves for the backward pass, parameters left out.

    The one way to measure activations on a CPU, whose allocator keeps no count. What is
    recomputed is not seen: with checkpointing, layer inputs are held by other means.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._saved: dict[int, Tensor] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self.bytes = 0

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self.bytes = storage_bytes(self._saved.values())
        self._saved.clear()

    def _keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._own:
            # Held until the end, so that no other tensor can take its address.
            self._saved.setdefault(_storage(tensor), tensor)
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class FullError(RuntimeError):
    """The device of a rank is too small; raised on all ranks."""


class Votes:
    """What all ranks agree on, over a process group of its own.

    A rank that ran out of memory in the middle of a collective must not answer that collective
    with a vote: it votes here, and gives up if the others never come out of theirs.

    Args:
        ranks: that vote; all must make this object.
        timeout_minutes: how long a vote waits for the slowest rank.
    """

    def __init__(self, ranks: Ranks, timeout_minutes: float) -> None:
        self._ranks = ranks
        self._group: Any = None
        if ranks.world > 1:
            self._group = torch.distributed.new_group(
                backend="gloo", timeout=timedelta(minutes=timeout_minutes)
            )

    def first(self, reason: str) -> str:
        """The first rank's reason to stop that is not empty, the same on all ranks.

        Raises:
            RankError: another rank did not vote.
        """
        reasons: list[str] = [reason]
        if self._group is not None:
            reasons *= self._ranks.world
            try:
                torch.distributed.all_gather_object(reasons, reason, group=self._group)
            except RuntimeError as error:
                mine = reason or "nothing wrong here"
                raise RankError(
                    f"rank {self._ranks.rank}: {mine}; another rank did not answer"
                ) from error
        return next(filter(None, reasons), "")

    def together(self, job: Callable[[], T]) -> T:
        """Do a job that may fill a device. All ranks must call.

        Raises:
            FullError: a device was full, on this rank or another.
            Exception: what else the job raised, on this rank alone.
        """
        done: list[T] = []
        full = ""
        try:
            done.append(job())
        except (torch.OutOfMemoryError, StudentError) as error:
            # Where the weights alone are too much, the student counts as one that cannot be loaded.
            if not any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__)):
                raise
            taken = of_bytes(torch.cuda.max_memory_allocated())
            full = f"more is needed than the {taken} that were taken when it was full"
        if reason := self.first(full):
            raise FullError(reason)
        return done[0]


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
    order = PlanOrder(tuple(longest), plan.derived.micro_steps, own)
    batches = read_ahead(plan, samples, order)
    before = 0 if ranks.device.type == "cuda" else peak_bytes()
    _, engine = votes.together(lambda: load_engine(plan, ranks))
    stepper = _Stepper(engine, plan.derived.dtype, plan.derived.micro_steps, votes)
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
        parts = weight_bytes(self.engine)
        activations = 0
        for batch in micro:
            batch = batch.to(self.device, self.dtype)
            before = _allocated(self.device)
            with SavedTensors(self.engine.engine.module) as saved:
                loss = self._forward(batch, share)
            grown = _allocated(self.device) - before if self.device.type == "cuda" else saved.bytes
            activations = max(activations, grown)
            self.votes.together(partial(self.engine.backward, loss))
            parts["gradients"] = gradient_bytes(self.engine)
            self.votes.together(self.engine.step)
        parts["optimiser"] = optimiser_bytes(self.engine)
        teacher = max(sum(t.nbytes for t in tensors_of(b.teacher)) for b in micro)
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
