"""Read micro-batches ahead in worker processes: bounded, and never hanging on one that died."""

import atexit
import multiprocessing
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from ...runtime.processes import starting_processes
from ...runtime.signals import ENDING
from .batch import Batch, Sample, collate

StartMethod = Literal["auto", "fork", "spawn"]

_FILES_PER_BATCH: Final = 32
"""Open files that a batch in shared memory holds at most: one a tensor, two while it is sent."""
_LONGEST_FOLDER: Final = 70
"""Characters of a folder that still leave room for the name of a socket, 103 in all."""


class DataWorkerError(RuntimeError):
    """A process that reads data died, or has no room for what it read."""


def micro_batches(
    samples: Dataset[Sample],
    order: Iterable[list[int]],
    pad_id: int,
    workers: int,
    accumulation: int = 1,
    *,
    prefetch: int = 2,
    start_method: StartMethod = "auto",
    left: bool = False,
) -> Generator[Batch]:
    """Read micro-batches in the given order, ahead of their use.

    At most max(prefetch * accumulation, workers) micro-batches wait in shared memory, on a GPU in
    pinned memory. Each takes, an image, 12 * S * S bytes of pixels (S = 336: 1.35 MB) and its
    teacher row (576 patches of width 1024 in fp16: 1.18 MB).

    Args:
        samples: read by number; pickled for every worker where they are spawned.
        order: numbers of each micro-batch.
        pad_id: token for the padding.
        workers: processes; 0 reads in this one.
        accumulation: micro-batches of a step, which are all wanted before its first forward.
        prefetch: steps to read ahead.
        start_method: of the workers; `auto` forks where the system can. Forked workers share the
            records with this process and start at once; they never touch CUDA.
        left: pad on the left, to generate.

    Raises:
        DataWorkerError: a worker died, or has no room for a batch; the others are ended too.
    """
    method = _method(start_method)
    ahead = max(1, prefetch * accumulation // workers) if workers else None
    loader: Any = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=partial(_send if workers else collate, pad_id=pad_id, left=left),
        multiprocessing_context=method if workers else None,
        worker_init_fn=_use_a_short_folder,
        prefetch_factor=ahead,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: the default draws from the one that the training draws from.
        generator=torch.Generator(),
    )
    if not workers:
        yield from loader
        return
    _allow_open_files((ahead or 1) * workers * _FILES_PER_BATCH)
    before = set(multiprocessing.active_children())
    with starting_processes(method, *ENDING), _deaths_left_alone():
        batches = iter(loader)
    started = set(multiprocessing.active_children()) - before
    end = partial(_end, started)
    # Python waits at its exit for processes that do not hear its polite signal.
    atexit.register(end)
    try:
        while (batch := _next(batches, started)) is not None:
            if isinstance(batch, _Lost):
                raise DataWorkerError(
                    f"{batch.why}; lower data.workers or --workers (now {workers}; 0 reads in "
                    "this process) or data.prefetch, and run the same command to continue"
                )
            yield batch
    finally:
        del batches  # asks the workers to end, and waits some seconds
        atexit.unregister(end)
        end()


def _end(started: set[BaseProcess]) -> None:
    for process in started:
        process.kill()
        process.join()


@dataclass(frozen=True, slots=True)
class _Lost:
    """In place of a batch: why there is none."""

    why: str


class _Sent:
    """A batch in shared memory. Unpickled, it is the batch itself.

    Left to the worker's queue, this would be done by a thread that drops a batch that it cannot
    send, and this process would wait for it forever.

    Raises:
        OSError, RuntimeError: no shared memory, or no open file, is left.
    """

    def __init__(self, batch: Batch) -> None:
        self._pickled = bytes(ForkingPickler.dumps(batch))

    def __reduce__(self) -> tuple[Any, ...]:
        return ForkingPickler.loads, (self._pickled,)


def _send(samples: list[Sample], pad_id: int, left: bool) -> _Sent | _Lost:
    batch = collate(samples, pad_id, left=left)
    try:
        return _Sent(batch)
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return _Lost(f"a data worker cannot put a batch into shared memory (/dev/shm): {reason}")


def _next(batches: Iterator[Any], started: set[BaseProcess]) -> Batch | _Lost | None:
    """The next batch; None after the last."""
    try:
        batch: Batch | _Lost | None = next(batches, None)
    except (RuntimeError, OSError, EOFError):
        codes = [process.exitcode for process in started if process.exitcode]
        if not codes:
            raise
        return _Lost(_death(codes[0]))
    return batch


def _death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "a data worker was killed, as the system does when memory is full"
    if code == -signal.SIGBUS:
        return "a data worker found no room in shared memory (/dev/shm)"
    return f"a data worker ended unexpectedly (exit code {code})"


def _method(start_method: StartMethod) -> str:
    if start_method != "auto":
        return start_method
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def _use_a_short_folder(_worker: int) -> None:
    # Batches are handed over through a socket there, and its name has a greatest length.
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"


@contextmanager
def _deaths_left_alone() -> Iterator[None]:
    """Keep what this process does when a child ends.

    Torch's own handler raises wherever this process is when a worker dies. That is noticed as
    well, within seconds, where the next batch is waited for.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _allow_open_files(more: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 1024 + more
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
