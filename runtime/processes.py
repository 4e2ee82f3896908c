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
from typing import Final, Self, TypeVar

from .signals import held_back, unheard

# Fork would copy a parent that holds CUDA, OpenMP threads and the locks of other threads; the
# fork server starts small and clean, and its children need neither torch nor zarr.
_METHOD: Final = (
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
_ONE_THREAD: Final = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)
_LATE_SECONDS: Final = 0.5
"""A scheduler signals every process of a job: so much later than a worker's, ours may come."""

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

    def __init__(self, count: int, *, preload: str | None = None) -> None:
        """Take the number of processes, and a module that all of them need: it is loaded once."""
        if count < 0:
            raise ValueError(f"workers takes a number from 0, got {count}")
        self.count = count
        self._preload = [] if preload is None else [preload]
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.count:
            context = multiprocessing.get_context(_METHOD)
            with starting_processes(_METHOD, signal.SIGHUP, signal.SIGINT):
                if _METHOD == "forkserver":
                    context.set_forkserver_preload(self._preload)
                    with _one_thread():
                        forkserver.ensure_running()
                self._pool = ProcessPoolExecutor(self.count, context, initializer=_begin_worker)
        return self

    def __exit__(self, *_: object) -> None:
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
            except Exception as error:  # raised where a process would raise it: by the result
                done.set_exception(error)
            return done
        with _deaths_reported():
            return _submit(self._pool, function, task)

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
        waiting = iter(tasks)
        futures: deque[Future[Result]] = deque()
        with _deaths_reported():
            for task in itertools.islice(waiting, max(1, ahead)):
                futures.append(_submit(self._pool, function, task))
            while futures:
                result = futures.popleft().result()
                for task in itertools.islice(waiting, 1):
                    futures.append(_submit(self._pool, function, task))
                yield result


def result_of(future: Future[Result]) -> Result:
    """Wait for what `Workers.submit` began.

    Raises:
        WorkerDiedError: the process that did it ended by itself.
    """
    with _deaths_reported():
        return future.result()


@contextmanager
def starting_processes(method: str, *numbers: signal.Signals) -> Iterator[None]:
    """Start processes by a method of `multiprocessing`; they never hear these signals."""
    if method != "fork":
        # First, for its start unblocks Ctrl-C. It would die of a closed terminal itself, and what
        # keeps track of semaphores must outlive those who use them.
        with unheard(signal.SIGHUP):
            resource_tracker.ensure_running()
    with unheard(*numbers):
        yield


@contextmanager
def _deaths_reported() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        time.sleep(_LATE_SECONDS)  # a signal of our own says better why
        raise WorkerDiedError(
            "a worker process died, most often because memory ran out; run the same command again "
            "to continue, with fewer --workers if it dies again"
        ) from error


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
