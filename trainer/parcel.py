"""A batch on its way out of a worker process: one piece of memory, seen by both, copied by none."""

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any, Final

import torch
from torch import Tensor

from .batch import Batch, each_tensor

_ALIGNED: Final = 64


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in the shared memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def of(self, memory: mmap.mmap) -> Tensor:
        """The tensor itself, which keeps the memory mapped."""
        count = torch.Size(self.shape).numel()
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(memory, dtype=self.dtype, count=count, offset=self.offset)
        return flat.view(self.shape)


class Parcel:
    """Pickled in one process, it is unpickled in another as the batch itself.

    All tensors travel as one file descriptor. Torch would open one for each, and in /dev/shm,
    which containers keep so small that a few batches fill it.

    Args:
        batch: on the CPU; copied.

    Raises:
        OSError: no memory, or no file descriptor, is left.
    """

    def __init__(self, batch: Batch) -> None:
        placed: list[tuple[_Place, Tensor]] = []
        size = _ALIGNED  # nothing cannot be mapped

        def place(tensor: Tensor) -> _Place:
            nonlocal size
            found = _Place(tensor.dtype, tuple(tensor.shape), size)
            placed.append((found, tensor))
            size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
            return found

        skeleton = each_tensor(batch, place)
        with _memory(size) as file:
            memory = mmap.mmap(file, size)
            for where, tensor in placed:
                where.of(memory).copy_(tensor)
            self._parts: tuple[Any, ...] = (skeleton, DupFd(file), size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, self._parts


def _unpack(skeleton: Batch, handle: Any, size: int) -> Batch:
    file = handle.detach()
    try:
        memory = mmap.mmap(file, size)
    finally:
        os.close(file)
    return each_tensor(skeleton, lambda place: place.of(memory), _Place)


@contextmanager
def _memory(size: int) -> Iterator[int]:
    """A nameless file in memory; on systems without, one on disk that is already deleted."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("medalign-batch")
        try:
            os.ftruncate(file, size)
            yield file
        finally:
            os.close(file)
    else:
        with tempfile.TemporaryFile() as kept:
            kept.truncate(size)
            yield kept.fileno()
