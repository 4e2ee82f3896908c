"""SIGTERM and SIGHUP end a build as Ctrl-C does: schedulers and terminals send them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .signals import REPEATED, handled_by
from .workers import WorkerDiedError

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
