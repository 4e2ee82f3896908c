"""One thing that was looked at, and what came of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["ok", "warning", "failed"]

SHOWN: Final = 10
"""Details shown of one check; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of a check.

    Attributes:
        name: what was looked at.
        status: `failed` would stop a run, or spoil it; `warning` may.
        text: what was found, in one line.
        advice: what to do about it; empty when all is well.
        details: single cases, one line each.
    """

    name: str
    status: Status
    text: str
    advice: str = ""
    details: tuple[str, ...] = ()


def first(cases: Sequence[str], total: int | None = None) -> tuple[str, ...]:
    """The first few cases, and the count of the rest."""
    total = len(cases) if total is None else total
    shown = tuple(cases[:SHOWN])
    return shown if total <= len(shown) else (*shown, f"and {total - len(shown):,} more")


def worst(checks: Iterable[Check]) -> Status:
    """The worst status among checks."""
    found = {check.status for check in checks}
    return "failed" if "failed" in found else "warning" if "warning" in found else "ok"
