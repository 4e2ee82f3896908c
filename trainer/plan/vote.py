"""All ranks go on, or none: one that stopped alone would leave the others waiting for it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch

from ..amounts import of_bytes
from ..ranks import RankError, Ranks
from ..students.spec import StudentError

T = TypeVar("T")


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
            # A student whose weights alone are too much is told of as one that cannot be loaded.
            if not any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__)):
                raise
            taken = of_bytes(torch.cuda.max_memory_allocated())
            full = f"more is needed than the {taken} that were taken when it was full"
        if reason := self.first(full):
            raise FullError(reason)
        return done[0]
