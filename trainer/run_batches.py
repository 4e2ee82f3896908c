"""What a run reads: its conversations, in its order, as micro-batches."""

from collections.abc import Generator

from torch.utils.data import Sampler

from .batch import Batch
from .data import Conversations
from .estimate import estimated_lengths
from .order import Lengths, StepOrder
from .prepare import Prepared
from .ranks import Ranks
from .workers import micro_batches


def samples_of(plan: Prepared) -> Conversations:
    """The training set of a run."""
    return Conversations(
        plan.selection.records, plan.images, plan.student, plan.recipe.data.max_length, plan.cache
    )


def step_order(plan: Prepared, length: int, ranks: Ranks, start: int, stop: int) -> StepOrder:
    """Which of `length` samples a rank reads for steps `start` to `stop`."""
    data = plan.recipe.data
    return StepOrder(
        length=length,
        seed=plan.recipe.run.seed,
        batch_size=data.batch_size,
        accumulation=data.micro_steps,
        rank=ranks.rank,
        world=ranks.world,
        start=start,
        stop=stop,
        lengths=_lengths(plan) if data.group_by_length else None,
    )


def _lengths(plan: Prepared) -> Lengths:
    images = plan.student.encoder.tokens_per_image
    return estimated_lengths(plan.selection.records, images, plan.recipe.data.max_length)


def read_ahead(
    plan: Prepared, samples: Conversations, order: Sampler[list[int]]
) -> Generator[Batch]:
    """Micro-batches in an order, read as the recipe says."""
    data = plan.recipe.data
    return micro_batches(
        samples,
        order,
        pad_id(plan),
        data.workers,
        data.micro_steps,
        prefetch=data.prefetch,
        start_method=data.start_method,
    )


def pad_id(plan: Prepared) -> int:
    """Token of the padding, which is never attended to."""
    found = plan.student.processor.tokenizer.pad_token_id
    return 0 if found is None else int(found)
