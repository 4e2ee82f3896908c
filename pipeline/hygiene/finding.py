"""What every checker yields: one thing that was looked at, and what came of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["ok", "warning", "failed"]

DETAILS: Final = 10
"""Details listed of one check; the others are counted."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of a check.

    Attributes:
        name: what was looked at.
        status: `failed` would stop a run, or spoil it; `warning` may.
        text: the outcome in one line.
        advice: what to do about it; empty when all is well.
        details: single cases, one line each.
    """

    name: str
    status: Status
    text: str
    advice: str = ""
    details: tuple[str, ...] = ()


def first(cases: Sequence[str], total: int | None = None) -> tuple[str, ...]:
    """The first few cases, and the count of the others."""
    total = len(cases) if total is None else total
    listed = tuple(cases[:DETAILS])
    return listed if total <= len(listed) else (*listed, f"and {total - len(listed):,} more")


def worst(checks: Iterable[Check]) -> Status:
    """The worst status among checks."""
    statuses = {check.status for check in checks}
    return "failed" if "failed" in statuses else "warning" if "warning" in statuses else "ok"


def guarded(
    name: str,
    look: Callable[[], Check | Iterable[Check]],
    advice: str = "the other checks were made",
) -> Iterator[Check]:
    """Make a check; whatever it raises is the failure of that check alone.

    Args:
        name: of the check.
        look: the check, or several in one.
        advice: what to do when it raises.
    """
    try:
        outcome = look()
        yield from [outcome] if isinstance(outcome, Check) else outcome
    except Exception as error:  # libraries raise what they like on files that they do not know
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        yield Check(name, "failed", text, advice)


def lines(checks: Sequence[Check]) -> Iterator[str]:
    """Checks as text for a terminal."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        advice = f"; {check.advice}" if check.advice else ""
        yield f"{check.status:<7}  {check.name:<{width}}  {check.text}{advice}"
        for detail in check.details:
            yield f"{'':{width + 11}}{detail}"
