"""Read micro-batches ahead in worker processes: bounded, and never hanging on one that died."""

import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Final, Literal, cast

import torch
from torch.utils.data import Dataset

from .batch import Batch, Sample, collate
from .parcel import Parcel

StartMethod = Literal["auto", "fork", "spawn"]

_HELD: Final = (signal.SIGINT, signal.SIGTERM)
_FILES_PER_BATCH: Final = 2
"""Open files that a batch in shared memory holds at most."""


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
) -> Generator[Batch]:
    """Read micro-batches in the given order, ahead of their use.

    At most max(prefetch * accumulation, workers) micro-batches wait in memory, on a GPU in pinned
    memory. Each takes, an image, 12 * S * S bytes of pixels (S = 336: 1.35 MB) and its teacher
    row (576 patches of width 1024 in fp16: 1.18 MB).

    Args:
        samples: read by number; pickled for every worker where they are spawned.
        order: numbers of each micro-batch.
        pad_id: token for the padding.
        workers: processes; 0 reads in this one.
        accumulation: micro-batches of a step, which are all wanted before its first forward.
        prefetch: steps to read ahead.
        start_method: of the workers; `auto` forks where the system can. Forked workers share the
            records with this process and start at once; they never touch CUDA.

    Raises:
        DataWorkerError: a worker died, or has no room for a batch; the others are ended too.
    """
    if not workers:
        yield from _read_here(samples, order, pad_id)
        return
    depth = max(prefetch * accumulation, workers)
    _allow_open_files(depth * _FILES_PER_BATCH)
    with _Readers(samples, pad_id, workers, start_method) as readers:
        ahead: deque[Future[Batch]] = deque()
        try:
            for numbers in order:
                ahead.append(readers.submit(numbers))
                if len(ahead) >= depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise DataWorkerError(f"{readers.what_died()}; {_advice(workers)}") from error
        except DataWorkerError as error:
            raise DataWorkerError(f"{error}; {_advice(workers)}") from error


def _read_here(
    samples: Dataset[Sample], order: Iterable[list[int]], pad_id: int
) -> Iterator[Batch]:
    for numbers in order:
        batch = collate([samples[k] for k in numbers], pad_id)
        yield batch.pin_memory() if torch.cuda.is_available() else batch


class _Readers:
    """Worker processes, and on a GPU one thread that pins what they read."""

    def __init__(
        self, samples: Dataset[Sample], pad_id: int, workers: int, start_method: StartMethod
    ) -> None:
        method = start_method
        if method == "auto":
            methods = multiprocessing.get_all_start_methods()
            method = "fork" if "fork" in methods else "spawn"
        if method == "spawn":
            resource_tracker.ensure_running()  # its start would let the held signals through
        self._workers = workers
        self._before = set(multiprocessing.active_children())
        self._started: set[BaseProcess] = set()
        self._pool = ProcessPoolExecutor(
            workers,
            multiprocessing.get_context(method),
            initializer=_begin,
            initargs=(samples, pad_id),
        )
        self._pinner: ThreadPoolExecutor | None = None

    def __enter__(self) -> "_Readers":
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing that they still read is wanted, and they do not hear a polite signal.
        for process in self._started:
            process.kill()
        self._pool.shutdown(cancel_futures=True)
        if self._pinner is not None:
            self._pinner.shutdown(cancel_futures=True)

    def submit(self, numbers: list[int]) -> Future[Batch]:
        """Ask for a micro-batch."""
        with _signals_held():
            # A parcel arrives as the batch that is in it.
            future = cast(Future[Batch], self._pool.submit(_read, numbers))
        if len(self._started) < self._workers:
            self._started |= set(multiprocessing.active_children()) - self._before
        if not torch.cuda.is_available():
            return future
        if self._pinner is None:  # after the fork
            device = torch.cuda.current_device()
            self._pinner = ThreadPoolExecutor(1, "pin", torch.cuda.set_device, (device,))
        return self._pinner.submit(lambda: future.result().pin_memory())

    def what_died(self) -> str:
        """Say how a worker ended."""
        codes: list[int] = []
        until = time.monotonic() + 2
        while not codes and time.monotonic() < until:  # it is known to be dead before its code is
            codes = [process.exitcode for process in self._started if process.exitcode]
            time.sleep(0.01)
        if -signal.SIGKILL in codes:
            return "a data worker was killed, as the system does when memory is full"
        return f"a data worker ended unexpectedly (exit code {codes[0] if codes else 'unknown'})"


def _advice(workers: int) -> str:
    return (
        f"lower data.workers (now {workers}; 0 reads in the training process) or data.prefetch, "
        "and run the same command to go on from the last checkpoint"
    )


_task: dict[str, Any] = {}
"""What a worker process reads from, set once when it starts."""


def _begin(samples: Dataset[Sample], pad_id: int) -> None:
    torch.set_num_threads(1)
    _task.update(samples=samples, pad_id=pad_id)
    Thread(target=_end_with_the_parent, daemon=True).start()


def _read(numbers: list[int]) -> Parcel:
    batch = collate([_task["samples"][k] for k in numbers], _task["pad_id"])
    try:
        return Parcel(batch)
    except OSError as error:
        raise DataWorkerError(f"no room for a batch in shared memory: {error.strerror}") from error


def _end_with_the_parent() -> None:
    """A parent that was killed cannot end its workers, and they would hold its GPU."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back signals here, so that processes started inside never hear them.

    Schedulers signal the whole process group; a worker that died of it would end the run. A
    handler set by the worker would come too late for one that is still being spawned.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _allow_open_files(more: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1024 + more
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
