"""Signals that end a job wait while something is done that must not be torn apart."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

REPEATED = (signal.SIGTERM, signal.SIGHUP)
"""Signals that schedulers and terminals send more than once."""

_SIGNALS = (signal.SIGINT, *REPEATED)


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals wait until the block is done.

    Torch aborts where its import is torn apart, and a worker process whose start is torn apart
    complains of what it no longer finds.
    """
    came: list[int] = []
    try:
        with handled_by(lambda number, _: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and SIGHUP so; what `nohup` has ignored stays ignored."""
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
