"""The order of training: a pure function of the seed, whatever ranks, workers and split."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from ...pipeline.manifest import Record

Numbers = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]

POOL_STEPS: Final = 16
"""Steps whose samples are sorted by length together: more saves more padding and mixes less."""
_BYTES_PER_TOKEN: Final = 4
_TOKENS_OF_UNREAD_IMAGE: Final = 1000
"""Where an image must be read to know its tokens: one of 900 x 900 pixels has as many."""


@lru_cache(maxsize=2)
def _epoch_order(length: int, seed: int, epoch: int) -> Numbers:
    return np.random.default_rng([seed, epoch]).permutation(length)


def group_by_length(
    order: Numbers, lengths: Lengths, first: int, per_step: int, rng: np.random.Generator
) -> None:
    """Bring samples of similar length into the same steps, in place.

    An epoch is cut where steps begin. The samples of `POOL_STEPS` steps are sorted by length,
    longest first, and dealt as runs of neighbours to those steps in a random order: a micro-batch
    is a piece of a run, and long and short steps still come mixed. An epoch of fewer steps than
    that makes about the same steps every time.

    Args:
        order: one shuffled epoch; changed.
        lengths: tokens of every sample.
        first: position in the epoch where its first whole step begins.
        per_step: samples of a step.
        rng: of the order of steps.
    """
    edges = np.unique([0, *range(first, len(order), per_step), len(order)])
    for begin in range(0, len(edges) - 1, POOL_STEPS):
        cuts = edges[begin : begin + POOL_STEPS + 1]
        pool = order[cuts[0] : cuts[-1]].copy()
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        taken = 0
        for step in rng.permutation(len(cuts) - 1):
            size = cuts[step + 1] - cuts[step]
            order[cuts[step] : cuts[step + 1]] = pool[taken : taken + size]
            taken += size


@dataclass(frozen=True, slots=True)
class StepOrder(Sampler[list[int]]):
    """Sample numbers of one rank's micro-batches, step after step.

    Samples stand in an endless stream of shuffled epochs, each of which visits every sample once.
    A step's samples follow from its number alone, whatever the number of workers, ranks or
    micro-batches, so a resumed run has nothing to catch up on.

    Attributes:
        length: samples in the set.
        seed: of the shuffle.
        batch_size, accumulation: samples of a micro-step on one rank, micro-steps of a step.
        rank, world: which part of every micro-step is this rank's.
        start, stop: steps to give, `start` included, `stop` not.
        lengths: tokens of every sample, to put similar ones together; None leaves the shuffle.
            Which samples a step holds then depends on the samples of a step, but as ever not on
            how these are split.
    """

    length: int
    seed: int
    batch_size: int
    accumulation: int
    rank: int
    world: int
    start: int
    stop: int
    lengths: Lengths | None = field(default=None, compare=False)

    def __iter__(self) -> Iterator[list[int]]:
        current, order = -1, np.empty(0, np.int64)
        for micro in range(self.start * self.accumulation, self.stop * self.accumulation):
            begin = (micro * self.world + self.rank) * self.batch_size
            numbers = []
            for position in range(begin, begin + self.batch_size):
                epoch, index = divmod(position, self.length)
                if epoch != current:
                    current, order = epoch, self.epoch(epoch)
                numbers.append(int(order[index]))
            yield numbers

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulation

    def epoch(self, number: int) -> Numbers:
        """Sample numbers of one epoch, in the order of all ranks together."""
        order = _epoch_order(self.length, self.seed, number)
        if self.lengths is None:
            return order
        order = order.copy()
        per_step = self.batch_size * self.accumulation * self.world
        first = -number * self.length % per_step
        # A stream of its own: not the one that has shuffled this epoch.
        rng = np.random.default_rng([self.seed, number, 1])
        group_by_length(order, self.lengths, first, per_step, rng)
        return order


def estimated_lengths(
    records: Iterable[Record], tokens_per_image: int | None, max_length: int
) -> Lengths:
    """Estimate the tokens of each record: four bytes of its text make one, an image makes N.

    An estimate because it is only sorted by: a million records take seconds on every start of
    every rank, where tokenising them takes many minutes. It depends on the text alone, so all
    ranks find the same.

    Args:
        records: of a training set.
        tokens_per_image: N; None where it depends on the image, all of which then count alike.
        max_length: where longer ones are cut.

    Returns:
        int32, one number a record.
    """
    image = _TOKENS_OF_UNREAD_IMAGE if tokens_per_image is None else tokens_per_image
    lengths = (
        image * len(record.images)
        + sum(len(turn.text.encode()) for turn in record.conversations) // _BYTES_PER_TOKEN
        for record in records
    )
    return np.minimum(np.fromiter(lengths, np.int64), max_length).astype(np.int32)


def choose(records: int, at_most: int) -> list[int]:
    """Numbers of the records to validate on, in order: all, or the same random choice always."""
    if not 0 < at_most < records:
        return list(range(records))
    return sorted(np.random.default_rng(0).permutation(records)[:at_most].tolist())


@dataclass(frozen=True, slots=True)
class HeldOutOrder(Sampler[list[int]]):
    """Sample numbers of one rank's batches; every rank has the same number of batches.

    Numbers of `samples` and above are padding: under ZeRO 3 a rank that did fewer forward passes
    would leave the others waiting.
    """

    samples: int
    batch_size: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(len(self)):
            begin = (number * self.world + self.rank) * self.batch_size
            yield list(range(begin, begin + self.batch_size))

    def __len__(self) -> int:
        return -(-self.samples // (self.batch_size * self.world))
