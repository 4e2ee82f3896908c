"""The student on conversations it never learns from: every loss term, now and then during a run."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..teacher_cache.schema import TeacherCacheError
from .data.batch import Batch
from .data.dataset import Conversations, Padded
from .data.loader import micro_batches
from .data.order import HeldOutOrder
from .distributed.engine import Engine
from .distributed.ranks import Ranks
from .objective import Share
from .recipe.recipe import Recipe
from .run.best_checkpoint import Contest
from .run.folder import RunFolder


class NothingHeldOutError(ValueError):
    """No held-out conversation can be read, or none has an answer."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What one evaluation measured, over all ranks; means as in training.

    Attributes:
        step: updates done before it.
        loss: lm + alpha * vis + beta * att.
        lm: mean over all answer tokens, in nats.
        vis, att: means over all images; None when no image has a teacher. Any value that is not
            finite is None, too.
        samples: conversations that were measured.
        skipped: conversations that could not be read.
        seconds: it took.
        records: digest of the conversations; values of other ones are not comparable.
    """

    step: int
    loss: float | None
    lm: float | None
    vis: float | None
    att: float | None
    samples: int
    skipped: int
    seconds: float
    records: str

    def values(self) -> dict[str, Any]:
        """Everything by name, as `validation.jsonl` holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out conversations and when to measure them.

    Attributes:
        samples: the records that `choose` gave.
        records: digest of them.
        recipe: of the run.
        steps: updates of the whole run.
        pad_id: token for the padding.
    """

    samples: Conversations
    records: str
    recipe: Recipe
    steps: int
    pad_id: int

    @property
    def contest(self) -> Contest | None:
        """What decides between checkpoints; None keeps no best one."""
        by = self.recipe.validation.keep_best
        return None if by is None else Contest(by, self.records)

    def is_due(self, step: int) -> bool:
        """Whether to measure after an update."""
        return step % self.recipe.validation.every == 0 or step == self.steps

    def is_lacking(self, step: int, folder: RunFolder, ranks: Ranks) -> bool:
        """Whether a measurement was due at a step and is not in the run folder. All ranks.

        A run that is asked to stop saves first, and is measured when it is resumed.
        """

        def lacking() -> bool:
            measured = [(line["step"], line["records"]) for line in folder.validation()]
            return (step, self.records) not in measured

        return self.is_due(step) and ranks.first(lacking)

    def measure(
        self, engine: Engine, dtype: torch.dtype, step: int, stopping: Callable[[], bool]
    ) -> Validation | None:
        """Measure every loss term; training afterwards is as if nothing had been. All ranks.

        Args:
            engine: holds the objective.
            dtype: of pixels on the device.
            step: updates done.
            stopping: whether this process was asked to stop.

        Returns:
            None when any rank was asked to stop.

        Raises:
            TeacherCacheError: an image changed since the cache was built, or a row is damaged.
            NothingHeldOutError: nothing can be read.
        """
        begun = time.perf_counter()
        with _evaluating(engine.engine), torch.no_grad():
            sums = self._sums(engine, dtype, stopping)
        if sums is None:
            return None
        lm, vis, att, tokens, images, skipped = engine.ranks.sum(sums)
        lm /= tokens
        vis, att = vis / max(1, images), att / max(1, images)
        weights = self.recipe.loss
        loss = lm + weights.alpha * vis + weights.beta * att
        return Validation(
            step=step,
            loss=_finite(loss),
            lm=_finite(lm),
            vis=_finite(vis) if images else None,
            att=_finite(att) if images else None,
            samples=len(self.samples) - int(skipped),
            skipped=int(skipped),
            seconds=time.perf_counter() - begun,
            records=self.records,
        )

    def _sums(
        self, engine: Engine, dtype: torch.dtype, stopping: Callable[[], bool]
    ) -> list[float] | None:
        """Sums of lm, vis and att of this rank, then answer tokens, images, skipped samples."""
        ranks = engine.ranks
        terms = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        counts = np.zeros(2)
        skipped: list[tuple[str, str]] = []
        with closing(self._batches(ranks)) as batches:
            for batch in batches:
                refused, stops = ranks.sum([float(len(batch.refused)), float(stopping())])
                if refused:
                    # All ranks stop together on an image that is not the cache's.
                    raise TeacherCacheError(f"held out: {ranks.gather_items(batch.refused)[0]}")
                if stops:
                    return None
                _, part = engine(batch.to(ranks.device, dtype), Share(1.0, 1.0))
                terms += part
                counts += (batch.answer_tokens, batch.teacher_images)
                skipped += batch.skipped
        if not ranks.sum([float(counts[0])])[0]:
            example = first_skipped(ranks.gather_items(skipped))
            raise NothingHeldOutError(f"nothing to validate on, for instance {example}")
        return [*terms.tolist(), *counts.tolist(), float(len(skipped))]

    def _batches(self, ranks: Ranks) -> Generator[Batch]:
        order = HeldOutOrder(
            samples=len(self.samples),
            batch_size=self.recipe.data.batch_size,
            rank=ranks.rank,
            world=ranks.world,
        )
        data = self.recipe.data
        return micro_batches(
            Padded(self.samples),
            order,
            self.pad_id,
            data.workers,
            prefetch=data.prefetch,
            start_method=data.start_method,
        )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, then every module's own mode again: a frozen part may never train."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def first_skipped(skipped: Sequence[tuple[str, str]]) -> str:
    """Describe the first of (record id, reason), for a message."""
    return f"record {skipped[0][0]!r}: {skipped[0][1]}" if skipped else "no answers"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
