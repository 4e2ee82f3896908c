"""Signals that end a job wait while something is done that must not be torn apart."""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

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


class StopRequest:
    """While entered, the first signal asks to stop; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by `nohup`
        heard = (signal.SIGINT, signal.SIGTERM, *([] if deaf else [signal.SIGHUP]))
        for number in heard:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGHUP:
            _leave_terminal()
        # os.write: a handler may run in the middle of another write to the same stream.
        os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again loses the step\n")


def _leave_terminal() -> None:
    """Let what is still said go nowhere: the terminal is gone, and writing to it would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
