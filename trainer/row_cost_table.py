"""The cost of rows as a Markdown table, for `medalign recipes cost` and docs/reproduce.md."""

from collections.abc import Iterable, Iterator
from typing import Final

from .amounts import of_bytes, of_seconds
from .recipe import Recipe
from .row_cost import cost
from .shipped import find_recipe, shipped_recipes
from .yaml_lines import RecipeError

COMMAND: Final = "medalign recipes cost"
_GPUS: Final = (1, 8)
_HEAD: Final = (
    "recipe",
    "conversations",
    "steps",
    "images",
    "cache fp16",
    "cache gram",
    "expert",
    *(f"train, {n} GPU{'s' * (n > 1)}" for n in _GPUS),
    *(f"memory, {n}" for n in _GPUS),
    "answers",
    "checkpoint",
    "run folder",
    "student",
)


def paper_rows() -> list[str]:
    """Shipped recipes that reproduce a row of the paper."""
    found = {name: Recipe.of(find_recipe(name)) for name in shipped_recipes()}
    return [name for name, recipe in found.items() if recipe.paper.data is not None]


def cost_table(names: Iterable[str]) -> Iterator[str]:
    """Lines of the table, a row a recipe, aligned for a terminal.

    Raises:
        RecipeError: a recipe does not exist, or says too little.
    """
    rows = [_HEAD, *(_cells(name) for name in names)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEAD))]
    lines = [
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        + " |"
        for row in rows
    ]
    yield lines[0]
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    yield from lines[1:]


def _cells(name: str) -> tuple[str, ...]:
    recipe = Recipe.of(find_recipe(name))
    try:
        costs = [cost(recipe, gpus) for gpus in _GPUS]
    except RecipeError as error:
        raise RecipeError(f"recipe {name}: {error}") from error
    one = costs[0]
    return (
        name,
        f"{one.conversations:,}",
        f"{one.steps:,}",
        f"{one.images:,}",
        of_bytes(one.cache_fp16),
        of_bytes(one.cache_gram),
        of_seconds(one.cache_seconds),
        *(of_seconds(found.train_seconds) for found in costs),
        *(of_bytes(found.peak) for found in costs),
        "?" if one.answer_seconds is None else of_seconds(one.answer_seconds),
        of_bytes(one.checkpoint),
        of_bytes(one.run),
        of_bytes(one.student),
    )
