from pathlib import Path
from typing import Any

import pytest

from medalign.trainer.recipe.recipe import Recipe, RecipeError, for_ranks


def with_data(**data: Any) -> Recipe:
    return Recipe.model_validate({"loss": {"layer": 1}, "run": {"steps": 1}, "data": data})


@pytest.mark.parametrize(
    ("data", "world", "accumulation"),
    [
        ({"per_step": 32}, 1, 32),
        ({"per_step": 32}, 4, 8),
        ({"per_step": 32, "batch_size": 4}, 8, 1),
        ({"per_step": 32, "accumulation": 8}, 4, 8),
        ({"accumulation": 5}, 4, 5),
        ({}, 4, 1),
    ],
)
def test_a_step_is_divided_among_the_ranks(
    data: dict[str, int], world: int, accumulation: int
) -> None:
    assert for_ranks(with_data(**data), world).data.accumulation == accumulation


@pytest.mark.parametrize(
    ("data", "world", "wanted"),
    [
        ({"per_step": 32}, 3, "no multiple of data.batch_size 1 * 3 ranks"),
        ({"per_step": 8, "batch_size": 16}, 1, "no multiple of data.batch_size 16 * 1 rank;"),
        (
            {"per_step": 32, "accumulation": 8},
            1,
            "data.per_step is 32, but data.batch_size 1 * 1 rank * data.accumulation 8 is 8",
        ),
    ],
)
def test_a_step_that_cannot_be_divided_so_is_refused(
    data: dict[str, int], world: int, wanted: str
) -> None:
    with pytest.raises(RecipeError) as error:
        for_ranks(with_data(**data), world)
    assert wanted in str(error.value)


def test_what_ran_is_written_down_and_can_be_read_again(tmp_path: Path) -> None:
    chosen = for_ranks(with_data(per_step=6), 2)
    path = tmp_path / "recipe.yaml"
    path.write_text(chosen.to_yaml())
    again = Recipe.from_yaml(path)
    assert (again.data.per_step, again.data.accumulation) == (6, 3)
    assert for_ranks(again, 2) == chosen
