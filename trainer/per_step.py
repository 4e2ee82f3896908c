"""How a step's conversations are divided among ranks and micro-steps."""

from .recipe import Recipe, RecipeError


def for_ranks(recipe: Recipe, world: int) -> Recipe:
    """Fill in `data.accumulation`, which may follow from `data.per_step` and the ranks at hand.

    Raises:
        RecipeError: a step cannot be divided so, or both are given and contradict each other.
    """
    data = recipe.data
    each = data.batch_size * world
    parts = f"data.batch_size {data.batch_size} * {world} rank{'s' * (world != 1)}"
    if data.per_step is None:
        accumulation = data.micro_steps
    elif data.per_step % each:
        raise RecipeError(
            f"data.per_step is {data.per_step}, which is no multiple of {parts}; change one of them"
        )
    else:
        accumulation = data.per_step // each
    if data.accumulation not in (None, accumulation):
        raise RecipeError(
            f"data.per_step is {data.per_step}, but {parts} * data.accumulation "
            f"{data.accumulation} is {each * data.micro_steps}; set one of the two to null"
        )
    filled = data.model_copy(update={"accumulation": accumulation})
    return recipe.model_copy(update={"data": filled})
