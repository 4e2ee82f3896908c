"""Run a function over many tasks in worker processes: in order, bounded, killable at any time."""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from types import FrameType, TracebackType
from typing import Self, TypeVar

from .signals import REPEATED, handled_by, held_back

# Fork would copy a parent that holds CUDA, OpenMP threads and the locks of other threads; the
# fork server starts small and clean, and its children need neither torch nor zarr.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_PRELOAD = "medalign.pipeline.decode"

_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_DIED = (
    "a worker process died while it read images, most often because memory ran out; shards that "
    "are written stay: run the same command again to go on, with fewer --workers if it dies again"
)

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerDiedError(ValueError):
    """A worker process ended by itself: killed, out of memory, or crashed in a decoder."""


def default_workers() -> int:
    """Return the number of CPUs this process may use, at most 8."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(count or 1, 8)


class Workers:
    """A pool of processes; with a count of 0 the work is done in this process.

    Programs that use it outside the command line need the usual
    `if __name__ == "__main__":`, since workers import the main module.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"workers takes a number from 0, got {count}")
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.count:
            context = multiprocessing.get_context(_METHOD)
            if _METHOD == "forkserver":
                # First: it would unblock Ctrl-C for what starts after it.
                with _deaf(signal.SIGHUP):
                    resource_tracker.ensure_running()
            with _deaf(signal.SIGHUP, signal.SIGINT):
                if _METHOD == "forkserver":
                    context.set_forkserver_preload([_PRELOAD])
                    with _one_thread():
                        forkserver.ensure_running()
                self._pool = ProcessPoolExecutor(self.count, context, initializer=_begin_worker)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Begin `function(task)`; without processes it is done when this returns.

        Raises:
            WorkerDiedError: a worker process ended by itself, now or earlier.
        """
        if self._pool is None:
            done: Future[Result] = Future()
            try:
                done.set_result(function(task))
            except Exception as error:  # told where a process would tell it: by the result
                done.set_exception(error)
            return done
        try:
            return _submit(self._pool, function, task)
        except BrokenProcessPool as error:
            raise WorkerDiedError(_DIED) from error

    def map(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], ahead: int
    ) -> Iterator[Result]:
        """Yield `function(task)` for every task, in order.

        Args:
            function: a picklable function of a module.
            tasks: read only as far as needed.
            ahead: how many results may be under way or waiting; this bounds the memory.

        Raises:
            WorkerDiedError: a worker process ended by itself.
        """
        if self._pool is None:
            yield from map(function, tasks)
            return
        rest = iter(tasks)
        futures: deque[Future[Result]] = deque()
        try:
            for task in itertools.islice(rest, max(1, ahead)):
                futures.append(_submit(self._pool, function, task))
            while futures:
                result = futures.popleft().result()
                for task in itertools.islice(rest, 1):
                    futures.append(_submit(self._pool, function, task))
                yield result
        except BrokenProcessPool as error:
            raise WorkerDiedError(_DIED) from error


def _submit(
    pool: ProcessPoolExecutor, function: Callable[[Task], Result], task: Task
) -> Future[Result]:
    # This may start a process. Were it interrupted there, the pool would not know of the process
    # or of its own thread, would not wait, and would take away what the process starts from.
    with held_back():
        return pool.submit(function, task)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start meanwhile do linear algebra in one thread, for there are many."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf(*numbers: signal.Signals) -> Iterator[None]:
    """Let processes that start meanwhile not hear Ctrl-C or a closed terminal.

    Both reach every process of a terminal. What keeps track of semaphores would die of SIGHUP, and
    a process that is still starting would print a traceback; this process hears them afterwards.
    """
    with held_back():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def result_of(future: Future[Result]) -> Result:
    """Wait for what `Workers.submit` began.

    Raises:
        WorkerDiedError: the process that did it ended by itself.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise WorkerDiedError(_DIED) from error


def _begin_worker() -> None:
    os.environ.update(_ONE_THREAD)  # in time where numpy is not loaded yet: spawned processes
    # Ctrl-C reaches the whole process group; the parent alone decides how to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent was killed, which the pool itself would not notice."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


_LATE_SECONDS = 0.5


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGTERM, SIGHUP or Ctrl-C into KeyboardInterrupt.

    After that the first two are ignored, since schedulers repeat them, and Ctrl-C interrupts at
    once whatever is still being finished. What `nohup` has ignored stays ignored.
    """
    with handled_by(_stop):
        try:
            yield
        except WorkerDiedError:
            # A scheduler signals every process of a job, and ours may come last.
            time.sleep(_LATE_SECONDS)
            raise


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in REPEATED:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
