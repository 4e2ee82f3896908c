from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from medalign.trainer.prepare import prepare, with_paths
from medalign.trainer.recipe import Recipe

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
