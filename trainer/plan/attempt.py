"""Real steps where this machine can take them, else the reason why not."""

from typing import Final

import torch

from ..data import Conversations
from ..host import free_memory_bytes
from ..prepare import Prepared
from ..ranks import Ranks
from .advice import Case
from .measure import Measured, measure
from .vote import FullError, Votes

CPU_PARAMETERS: Final = 500_000_000
"""Most parameters of a student whose step is taken on a CPU."""
CPU_SHARE: Final = 0.5
"""Most of the free memory that such a step may take, by formula."""
FULL: Final = "out of memory"
"""How the reason begins when the device was full."""


def attempt(
    run: Prepared, samples: Conversations, longest: list[int], here: Case, ranks: Ranks
) -> tuple[Measured | None, str]:
    """Take real steps, or say why not; every rank comes to the same end. All ranks must call.

    Args:
        run: whose student is loaded.
        samples: of the run.
        longest: record numbers of the micro-batch that the peak is measured with.
        here: the run on this machine, by formula.
        ranks: that take the steps.

    Returns:
        The measurement and an empty string, or None and the reason.

    Raises:
        ValueError: as training would.
    """
    votes = Votes(ranks, run.recipe.run.timeout_minutes)
    gpu = torch.cuda.is_available()
    # Free memory is another number on every rank, and a rank alone would wait for the others.
    if reason := votes.first("" if gpu else _too_large(here)):
        return None, reason
    try:
        return measure(run, samples, longest, ranks, votes), ""
    except FullError as error:
        return None, f"{FULL}: {error}"


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
