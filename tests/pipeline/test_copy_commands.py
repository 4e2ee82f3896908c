from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner, Result

from medalign.pipeline.commands.cache import cache
from medalign.runtime.arguments import ArgumentError
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError

Maker = Callable[..., Path]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cache, [str(word) for word in words])


def test_merge_writes_one_sealed_cache_and_says_what_it_holds(
    synthetic_store: Maker, tmp_path: Path
) -> None:
    first = synthetic_store(3, name="first", failures={1: "torn"})
    second = synthetic_store(4, paths=["images/2.png", "x.png", "y.png", "z.png"], name="second")
    result = run("merge", first, second, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out'} sealed" in result.stdout
    assert "6 rows in 2 shards" in result.stdout
    assert "1 image with the first cache's numbers" in result.stdout
    assert "images/1.png: torn" in result.stdout
    assert len(TeacherCache.open(tmp_path / "out")) == 6
    assert "0 shards copied" in run("merge", first, second, "--out", tmp_path / "out").stdout


def test_merge_says_how_to_settle_paths_with_two_images(
    synthetic_store: Maker, tmp_path: Path
) -> None:
    first = synthetic_store(2, name="first")
    second = synthetic_store(2, content=["a" * 64, "b" * 64], name="second")
    command = ("merge", first, second, "--out", tmp_path / "out")
    assert isinstance(run(*command).exception, TeacherCacheError)
    result = run(*command, "--prefer", "first")
    assert result.exit_code == 0, result.output
    assert "2 paths with the first cache's image" in result.stdout


def test_subset_takes_the_images_of_a_manifest(synthetic_store: Maker, tmp_path: Path) -> None:
    source = synthetic_store(5)
    manifest = tmp_path / "manifest.jsonl"
    turns = '[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "That."}]'
    manifest.write_text(f'{{"id": 1, "image": "images/3.png", "conversations": {turns}}}\n')
    result = run("subset", source, manifest, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert TeacherCache.open(tmp_path / "out").paths == ["images/3.png"]
    missing = run("subset", source, tmp_path / "none.jsonl", "--out", tmp_path / "other")
    assert isinstance(missing.exception, ArgumentError)
