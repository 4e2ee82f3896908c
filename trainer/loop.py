"""The training loop: a step is measured, checked, applied, written down."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..runtime.signals import StopRequest
from ..teacher_cache.schema import TeacherCacheError
from .data.batch import Batch
from .distributed.engine import Engine
from .machine import device_memory_errors, peak_bytes, resident_bytes
from .objective import Share
from .prepared import Prepared
from .recipe.sections import OptimSection
from .run.best_checkpoint import Contest
from .run.checkpoint import save_checkpoint
from .run.folder import RunFolder
from .run.loggers import Loggers
from .validation import HeldOut, Validation, first_skipped


class TrainingDivergedError(RuntimeError):
    """A loss or a gradient is not finite."""


class NothingToLearnError(ValueError):
    """No conversation of a step can be read, or none has an answer."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step measured, over all ranks.

    Attributes:
        step: updates done, this one included.
        loss: lm + alpha * vis + beta * att.
        lm: mean over the step's answer tokens, in nats.
        vis, att: means over the step's images; None when no image had a teacher.
        grad_norm: L2 norm of the gradient before clipping.
        grad_norms: the same of each group: lora, rotation, projector.
        lr: learning rate of LoRA.
        samples_per_second: conversations, over all ranks.
        data_wait: share of the step's time spent waiting for batches.
        skipped: conversations of this step that carried no weight.
        cut: conversations of this step that `data.max_length` shortened.
        peak_bytes: most memory of the device so far (of the process, on a CPU).
        tokens_per_second: over all ranks, image tokens counted, padding not.
        resident_bytes: host memory of the process now, without its data workers.
    """

    step: int
    epoch: float
    loss: float
    lm: float
    vis: float | None
    att: float | None
    grad_norm: float
    grad_norms: dict[str, float]
    lr: float
    samples_per_second: float
    data_wait: float
    skipped: int
    cut: int
    peak_bytes: int
    tokens_per_second: float
    resident_bytes: int

    def values(self) -> dict[str, Any]:
        """Every number by name, as `metrics.jsonl` holds it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Everything a loop needs, made once.

    Attributes:
        plan: of the run.
        engine: holds the objective.
        student: the PEFT model inside it.
        folder: of the run.
        about: recipe and cache identity, written beside every adapter.
        loggers: take every number; those of rank 0 only.
        held_out: what is measured now and then, or None.
    """

    plan: Prepared
    engine: Engine
    student: Any
    folder: RunFolder
    about: dict[str, Any]
    loggers: Loggers
    held_out: HeldOut | None = None

    def run(
        self, batches: Iterator[Batch], start: int, report: Callable[[Step], None]
    ) -> tuple[int, Path | None]:
        """Train from step `start` to the end, or until a signal asks to stop.

        Args:
            batches: this rank's micro-batches, from step `start` on.
            start: updates done already.
            report: called after every step on rank 0.

        Returns:
            Updates done, and the last checkpoint written here.

        Raises:
            TrainingDivergedError: a loss or gradient is not finite, on any rank; no checkpoint
                holds what it did.
            TeacherCacheError: an image changed since the cache was built, or a row is damaged.
            NothingToLearnError: no conversation of a step can be read.
            DeviceMemoryError: the GPU's memory is full.
        """
        saved, held_out = None, self.held_out
        steps, save_every = self.plan.steps, self.plan.recipe.run.save_every
        with StopRequest() as stop:
            if held_out is not None and held_out.is_lacking(start, self.folder, self.engine.ranks):
                measured = self._validate(held_out, start, stop)
                if start and self._is_best(measured):
                    saved = self._save(start, measured)
                if measured is None or self._any(stop.asked):
                    return start, saved
            for step in range(start + 1, steps + 1):
                self._step(batches, step, report)
                # A run that is asked to stop saves first; it is measured when it is resumed.
                stopping, measured = self._any(stop.asked), None
                if held_out is not None and held_out.is_due(step) and not stopping:
                    measured = self._validate(held_out, step, stop)
                    stopping = measured is None
                due = step % save_every == 0 or step == steps
                if stopping or due or self._is_best(measured):
                    saved = self._save(step, measured)
                if stopping:
                    return step, saved
        return steps, saved

    def log_saved(self, step: int) -> None:
        """Give the loggers the checkpoint that a killed run would resume from."""
        if self.engine.ranks.rank == 0:
            self.loggers.saved(step, self.folder.best(self._contest))

    @property
    def _contest(self) -> Contest | None:
        return None if self.held_out is None else self.held_out.contest

    def _validate(self, held_out: HeldOut, step: int, stop: StopRequest) -> Validation | None:
        measured = held_out.measure(self.engine, self.plan.derived.dtype, step, lambda: stop.asked)
        if measured is not None:
            self.loggers.log("validation", step, measured.values())
        return measured

    def _is_best(self, measured: Validation | None) -> bool:
        contest = self._contest
        if contest is None or measured is None:
            return False
        value = measured.values()[contest.by]
        return self.engine.ranks.first(lambda: self.folder.is_best(contest, value))

    def _save(self, step: int, measured: Validation | None) -> Path:
        saved = save_checkpoint(
            self.folder,
            self.engine,
            self.student,
            step,
            self.plan.recipe.run.keep,
            self.about,
            None if measured is None else measured.values(),
            self._contest,
        )
        self.log_saved(step)
        return saved

    def _step(self, batches: Iterator[Batch], step: int, report: Callable[[Step], None]) -> Step:
        recipe, derived = self.plan.recipe, self.plan.derived
        begun = time.perf_counter()
        micro = [next(batches) for _ in range(derived.micro_steps)]
        waited = time.perf_counter() - begun
        # Known before the first forward: a mean over the step needs the step's counts.
        tokens, images, skipped, refused, cut, read = self._sum(
            sum(b.answer_tokens for b in micro),
            sum(b.teacher_images for b in micro),
            sum(len(b.skipped) for b in micro),
            sum(len(b.refused) for b in micro),
            sum(b.cut for b in micro),
            sum(b.tokens for b in micro),
        )
        if refused or not tokens:
            self._refuse(micro, step)
        factor = rate_factor(recipe.optim, step - 1, self.plan.steps)
        self.engine.set_rate(factor)
        share = Share.of(int(tokens), int(images), derived.micro_steps * derived.world)
        terms, norms = self._update(micro, share, step)
        lm, vis, att = self._sum(*terms)
        seconds = time.perf_counter() - begun
        measured = Step(
            step=step,
            epoch=step * derived.per_step / len(self.plan.selection.records),
            loss=lm / tokens + (recipe.loss.alpha * vis + recipe.loss.beta * att) / max(1, images),
            lm=lm / tokens,
            vis=vis / images if images else None,
            att=att / images if images else None,
            grad_norm=math.hypot(*norms.values()),
            grad_norms=norms,
            lr=recipe.optim.lr * factor,
            samples_per_second=derived.per_step / seconds,
            data_wait=waited / seconds,
            skipped=int(skipped),
            cut=int(cut),
            peak_bytes=peak_bytes(),
            tokens_per_second=read / seconds,
            resident_bytes=resident_bytes(),
        )
        self._note(measured, micro, report)
        return measured

    def _update(
        self, micro: list[Batch], share: Share, step: int
    ) -> tuple[list[float], dict[str, float]]:
        """Forward and backward of every micro-batch, then one update of all parameters."""
        device = self.engine.ranks.device
        terms = torch.zeros(3, device=device)
        norms: dict[str, float] = {}
        # Dropout follows from the step alone: a resumed run has no generators to restore.
        torch.manual_seed(dropout_seed(self.plan.recipe.run.seed, step, self.engine.ranks.rank))
        with device_memory_errors(self.plan.recipe, f"step {step}"):
            for index, batch in enumerate(micro):
                loss, part = self.engine(batch.to(device, self.plan.derived.dtype), share)
                self.engine.backward(loss)
                terms += part
                if index == len(micro) - 1:
                    norms = self.engine.gradient_norms()
                    self._check(terms.tolist(), norms, micro, step)
                self.engine.step()
        return terms.tolist(), norms

    def _check(
        self, values: list[float], norms: dict[str, float], micro: list[Batch], step: int
    ) -> None:
        """Stop all ranks together, before anything is updated, when any met NaN or infinity."""
        mine = [not math.isfinite(value) for value in values]
        lost = self._sum(*mine)
        wrong = [name for name, ranks in zip(("lm", "vis", "att"), lost, strict=True) if ranks]
        wrong += [f"gradient of {name}" for name, n in norms.items() if not math.isfinite(n)]
        if not wrong:
            return
        # The norms are of all ranks; where a loss shows whose records did it, those are named.
        named = any(mine) or not any(lost)
        ids = [record for batch in micro for record in batch.ids] if named else []
        records = ", ".join(map(repr, self.engine.ranks.gather_items(ids)))
        raise TrainingDivergedError(
            f"step {step}: not finite: {', '.join(wrong)}, on records {records}; nothing was "
            "updated. Lower optim.lr, or look at these records; the same command resumes from the "
            "last checkpoint"
        )

    def _refuse(self, micro: list[Batch], step: int) -> None:
        """Stop all ranks together on images that must not, or cannot, be trained on."""
        ranks = self.engine.ranks
        refused = ranks.gather_items([reason for batch in micro for reason in batch.refused])
        if refused:
            raise TeacherCacheError(refused[0])
        skipped = ranks.gather_items([item for batch in micro for item in batch.skipped])
        raise NothingToLearnError(
            f"step {step} has nothing to learn from, for instance {first_skipped(skipped)}"
        )

    def _note(self, measured: Step, micro: list[Batch], report: Callable[[Step], None]) -> None:
        skipped: list[tuple[str, str]] = []
        if measured.skipped:
            own = [item for batch in micro for item in batch.skipped]
            skipped = self.engine.ranks.gather_items(own)
        if self.engine.ranks.rank == 0:
            self.loggers.log("train", measured.step, measured.values())
            if skipped:
                self.loggers.attempt(
                    "skipped.jsonl", lambda: self.folder.append_skipped(measured.step, skipped)
                )
            report(measured)

    def _sum(self, *values: float) -> list[float]:
        return self.engine.ranks.sum([float(v) for v in values])

    def _any(self, flag: bool) -> bool:
        return self._sum(float(flag))[0] > 0


def rate_factor(optim: OptimSection, step: int, steps: int) -> float:
    """Learning rate of update `step` (from 0) as a share of its base.

    Rises linearly over ceil(warmup_ratio * steps) updates, then falls to 0 just after the last
    update (or stays, for `constant`). A pure function, so a resumed run has no schedule to
    restore.
    """
    warmup = math.ceil(optim.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if optim.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress if optim.schedule == "linear" else 1.0


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of one rank's random numbers in one step; ranks and steps share none."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1
