"""Tell questions apart where a set does not say which are closed."""

from typing import Literal


def yes_no_type(answer: str) -> Literal["OPEN", "CLOSED"]:
    """Return CLOSED for the answers yes and no, in any case."""
    return "CLOSED" if answer.strip().lower() in ("yes", "no") else "OPEN"
