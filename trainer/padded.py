"""Held-out conversations in order, padded so that all ranks read the same number of batches.

A file without the student: spawned data workers import it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset, Sampler

from .batch import Sample
from .conversation import IGNORED
from .data import Conversations


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


class Padded(Dataset[Sample]):
    """Conversations, then as many copies of the first one as are asked for, without any weight."""

    def __init__(self, samples: Conversations) -> None:
        self._samples = samples

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index] if index < len(self._samples) else _weightless(self._samples[0])


def _weightless(sample: Sample) -> Sample:
    """The same work for the model, with nothing to sum."""
    encoded = sample.encoded
    if encoded is not None:
        encoded = replace(encoded, labels=np.full_like(encoded.labels, IGNORED), cut=0)
    teachers = (None,) * len(sample.teachers)
    return replace(sample, encoded=encoded, teachers=teachers, skipped="", refused="")
