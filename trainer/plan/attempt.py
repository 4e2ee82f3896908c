"""Real steps where this machine can take them, else the reason why not."""

from typing import Final

import torch

from ..amounts import of_bytes
from ..data import Conversations
from ..host import free_memory_bytes
from ..prepare import Prepared
from ..ranks import Ranks
from ..students.spec import StudentError
from .advice import Case
from .measure import Measured, measure

CPU_PARAMETERS: Final = 500_000_000
"""Most parameters of a student whose step is taken on a CPU."""
CPU_SHARE: Final = 0.5
"""Most of the free memory that such a step may take, by formula."""
FULL: Final = "out of memory"
"""How the reason begins when the device was full."""


def attempt(
    run: Prepared, samples: Conversations, longest: list[int], here: Case
) -> tuple[Measured | None, str]:
    """Take real steps, or say why not.

    Args:
        run: whose student is loaded.
        samples: of the run.
        longest: record numbers of the micro-batch that the peak is measured with.
        here: the run on this machine, by formula.

    Returns:
        The measurement and an empty string, or None and the reason.

    Raises:
        ValueError: as training would.
    """
    if not torch.cuda.is_available() and (reason := _too_large(here)):
        return None, reason
    try:
        return measure(run, samples, longest, Ranks(run.recipe.run.timeout_minutes)), ""
    except (torch.OutOfMemoryError, StudentError) as error:
        # A student whose weights alone are too much is told of as one that cannot be loaded.
        if not any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__)):
            raise
        full = of_bytes(torch.cuda.max_memory_allocated())
        return None, f"{FULL}: more is needed than the {full} that were taken when it was full"


def _too_large(here: Case) -> str:
    """Why a step is not taken on this CPU; an empty string if it is."""
    total = here.parameters.frozen + here.parameters.trained
    if total > CPU_PARAMETERS:
        return (
            f"no GPU here, and the student has {total / 1e9:.1f} billion parameters; on a CPU a "
            f"step is taken up to {CPU_PARAMETERS / 1e9:.1f} billion"
        )
    needed, free = here.memory.total, free_memory_bytes()
    if needed > CPU_SHARE * free:
        return (
            f"no GPU here, and the step would need {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB "
            f"free memory; on a CPU it is taken up to {CPU_SHARE:.0%} of that"
        )
    return ""
