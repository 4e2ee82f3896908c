"""Which checkpoint is the best one: a pure function of the complete checkpoints on disk.

Each checkpoint holds what was measured at its step, so no file of its own could disagree with it
after a kill.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MEASURED: Final = "validation.json"


@dataclass(frozen=True, slots=True)
class Best:
    """The checkpoint that won, and the value that decided."""

    checkpoint: Path
    step: int
    by: str
    value: float

    def __str__(self) -> str:
        """Step and value, for a user."""
        return f"step {self.step}, held-out {self.by} {self.value:.4f}"


@dataclass(frozen=True, slots=True)
class Contest:
    """What decides between checkpoints.

    Attributes:
        by: `loss`, `lm`, `vis` or `att`; the lowest wins, the earlier of equal ones.
        records: digest of the held-out conversations; values of other ones do not count.
    """

    by: str
    records: str

    def winner(self, checkpoints: Iterable[Path]) -> Best | None:
        """The checkpoint of the lowest value; None when nothing was measured."""
        measured = [best for path in checkpoints if (best := self._measured(path)) is not None]
        return min(measured, key=lambda best: (best.value, best.step), default=None)

    def is_won_by(self, value: float | None, checkpoints: Iterable[Path]) -> bool:
        """Whether a value is lower than that of every checkpoint."""
        best = self.winner(checkpoints)
        return value is not None and (best is None or value < best.value)

    def _measured(self, checkpoint: Path) -> Best | None:
        """What was measured; None where nothing was, or the file is damaged."""
        try:
            values = json.loads((checkpoint / MEASURED).read_text())
            if values["records"] != self.records or values[self.by] is None:
                return None
            return Best(checkpoint, int(values["step"]), self.by, float(values[self.by]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
