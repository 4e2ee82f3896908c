"""A check that dies of a folder's content is a finding, and the other checks go on."""

from collections.abc import Callable

from ..doctor.check import Check
from .errors import reason


def guarded(name: str, look: Callable[[], Check]) -> Check:
    """Run a check; whatever it raises is its failure.

    Args:
        name: of the check.
        look: the check.
    """
    try:
        return look()
    except Exception as error:  # a folder may hold anything, and libraries raise what they like
        text = f"cannot be looked at: {reason(error)}"
        return Check(name, "failed", text, "mend or copy the file that is at fault")
