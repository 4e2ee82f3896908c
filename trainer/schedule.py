"""The learning rate of every update: a pure function of its number."""

import math

from .recipe_sections import OptimSection


def rate_factor(optim: OptimSection, step: int, steps: int) -> float:
    """Learning rate of update `step` (from 0) as a share of its base.

    Rises linearly over ceil(warmup_ratio * steps) updates, then falls to 0 just after the last
    update (or stays, for `constant`). A pure function, so a resumed run has no schedule to
    restore.
    """
    warmup = math.ceil(optim.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if optim.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress if optim.schedule == "linear" else 1.0
