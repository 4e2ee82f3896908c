"""SIGTERM and SIGHUP end a build as Ctrl-C does: schedulers and terminals send them."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .workers import WorkerDiedError

_REPEATED = (signal.SIGTERM, signal.SIGHUP)
_SIGNALS = (signal.SIGINT, *_REPEATED)
_LATE_SECONDS = 0.5


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGTERM, SIGHUP or Ctrl-C into KeyboardInterrupt.

    After that the first two are ignored, since schedulers repeat them, and Ctrl-C interrupts at
    once whatever is still being finished. What `nohup` has ignored stays ignored.
    """
    with _handled_by(_stop):
        try:
            yield
        except WorkerDiedError:
            # A scheduler signals every process of a job, and ours may come last.
            time.sleep(_LATE_SECONDS)
            raise


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals wait until the block is done: torch aborts where its import is torn apart."""
    came: list[int] = []
    try:
        with _handled_by(lambda number, _: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in _SIGNALS if not (deaf and number is signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in _REPEATED:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
