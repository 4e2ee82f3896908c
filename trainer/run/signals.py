"""Ctrl-C, SIGTERM and SIGHUP end a run between two steps, with a checkpoint."""

import os
import signal
import stat
from types import FrameType, TracebackType
from typing import Self


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
