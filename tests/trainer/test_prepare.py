from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from medalign.trainer.prepared import prepare, with_paths
from medalign.trainer.recipe.recipe import Recipe, RecipeError

Dataset = Callable[..., tuple[Path, Path, Path]]


@pytest.mark.parametrize("by", ["recipe", "environment", "nothing"])
def test_rows_of_a_remote_cache_are_kept_where_recipe_or_environment_say(
    by: str,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, images, store = dataset()
    url = f"memory://{tmp_path.name}/cache"
    fsspec.filesystem("memory").put(str(store), url, recursive=True)
    folder = tmp_path / "near"
    monkeypatch.delenv("MEDALIGN_CACHE_FOLDER", raising=False)
    if by == "environment":
        monkeypatch.setenv("MEDALIGN_CACHE_FOLDER", str(folder))
    chosen = recipe(**{"data.cache_folder": str(folder)} if by == "recipe" else {})
    paths = with_paths(chosen, student=students(), manifest=manifest, images=images)
    cache = prepare(paths, url, world=1).cache
    assert cache is not None
    assert cache["0.png"].valid.all()
    assert folder.exists() == (by != "nothing")


def test_a_run_is_the_same_on_any_number_of_ranks_that_divides_its_step(
    dataset: Dataset, students: Callable[..., Path], recipe: Callable[..., Recipe]
) -> None:
    manifest, images, store = dataset(records=8)
    changes: dict[str, Any] = {"data.accumulation": None, "data.per_step": 4}
    changes |= {"data.batch_size": 1, "run.steps": None, "run.epochs": 3.0}
    chosen = with_paths(recipe(**changes), student=students(), manifest=manifest, images=images)
    found = [prepare(chosen, store, world) for world in (1, 2, 4)]
    assert [run.recipe.data.accumulation for run in found] == [4, 2, 1]
    assert [run.steps for run in found] == [6, 6, 6]
    with pytest.raises(RecipeError, match=r"data\.per_step is 4, which is no multiple"):
        prepare(chosen, store, 3)
