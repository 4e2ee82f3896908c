"""Ctrl-C and SIGTERM end a run between two steps, with a checkpoint."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """While entered, the first signal asks to stop; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
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
        # os.write: a handler may run in the middle of another write to the same stream.
        os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again loses the step\n")
