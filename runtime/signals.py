"""Ctrl-C, SIGTERM and SIGHUP: the one place that hears them.

`held_back` lets them wait, `interruptible` makes them end the command, `StopRequest` makes them
end training after its step, `unheard` keeps them from processes that are started meanwhile.
"""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final, Self

REPEATED: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals that schedulers and terminals send more than once."""

ENDING: Final = (signal.SIGINT, *REPEATED)
"""Signals that ask a process to end."""


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and SIGHUP so; what `nohup` has ignored stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread only
        return
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in ENDING if not (deaf and number is signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals wait until the block is done.

    Torch aborts where its import is torn apart, and a worker process whose start is torn apart
    complains of what it no longer finds.
    """
    waiting: list[int] = []
    try:
        with handled_by(lambda number, _frame: waiting.append(number)):
            yield
    finally:
        if waiting:
            signal.raise_signal(waiting[0])


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first signal into KeyboardInterrupt.

    After that SIGTERM and SIGHUP are ignored, since schedulers repeat them, and Ctrl-C interrupts
    at once whatever is still being finished.
    """
    with handled_by(_interrupt):
        yield


class StopRequest:
    """While entered, the first signal asks to stop; a second Ctrl-C interrupts at once.

    Attributes:
        asked: whether a signal came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._handlers = ExitStack()

    def __enter__(self) -> Self:
        self._handlers.enter_context(handled_by(self._ask))
        return self

    def __exit__(self, *_: object) -> None:
        self._handlers.close()

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGHUP:
            _leave_terminal()
        # os.write: a handler may run in the middle of another write to the same stream.
        os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again loses the step\n")


@contextmanager
def unheard(*numbers: signal.Signals) -> Iterator[None]:
    """Start processes that never hear these signals; this process hears them after the block.

    Ctrl-C and a closed terminal reach every process of a terminal, a scheduler's signal every
    process of a job. A handler that the new process sets would come too late: it may still be
    starting, and would print a traceback.
    """
    with held_back():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in REPEATED:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _leave_terminal() -> None:
    """Send output nowhere from now on: the terminal is gone, and writing to it would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
