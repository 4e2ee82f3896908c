"""SIGTERM ends a build as Ctrl-C does: schedulers send the one, people the other."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .workers import WorkerDiedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LATE_SECONDS = 0.5


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGTERM or Ctrl-C into KeyboardInterrupt.

    After that SIGTERM is ignored, since schedulers repeat it, and Ctrl-C interrupts at once
    whatever is still being finished.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    try:
        yield
    except WorkerDiedError:
        # A scheduler signals every process of a job, and ours may come last.
        time.sleep(_LATE_SECONDS)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
