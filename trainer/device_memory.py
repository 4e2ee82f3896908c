"""A full GPU is told as what to lower, with what was in use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .recipe import Recipe


class DeviceMemoryError(RuntimeError):
    """The GPU's memory does not suffice."""


@contextmanager
def explained(recipe: Recipe, doing: str) -> Iterator[None]:
    """Turn an out-of-memory error, or one that such an error caused, into advice.

    Args:
        recipe: of the run.
        doing: when it happened, as `step 7`.

    Raises:
        DeviceMemoryError: names what lowers the memory, cheapest first.
    """
    try:
        yield
    except DeviceMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        if not any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__)):
            raise
        raise DeviceMemoryError(
            f"{doing}: the GPU's memory is full{_used()} with data.batch_size "
            f"{recipe.data.batch_size}; {_relief(recipe)}. `medalign train --plan` measures what "
            "a step needs"
        ) from error


def _used() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    own = torch.cuda.max_memory_allocated()
    return f" ({own / 1e9:.1f} GB of {total / 1e9:.1f} GB were this run's, {free / 1e9:.1f} free)"


def _relief(recipe: Recipe) -> str:
    """What lowers the memory of a step, cheapest first; nothing that is done already."""
    ways = []
    if not recipe.student.gradient_checkpointing:
        ways.append("set student.gradient_checkpointing: true")
    if recipe.data.batch_size > 1:
        ways.append(
            "lower data.batch_size and raise data.accumulation by the same factor (the loss stays "
            "the same)"
        )
    if recipe.student.quantize == "none":
        ways.append("set student.quantize: nf4")
    if recipe.deepspeed.config is None and recipe.deepspeed.offload == "none":
        ways.append("set deepspeed.offload: optimizer")
    return ", or ".join([*ways, "lower data.max_length"])
