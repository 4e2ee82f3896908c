"""What a build refuses before the expert is loaded, and what it takes from the store."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from medalign.pipeline import experts as asked_expert
from medalign.pipeline.commands.cache import cache
from medalign.runtime.arguments import ArgumentError
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.writer import TeacherCacheWriter

Run = Callable[..., Result]


@pytest.fixture
def run(folder: Path) -> Run:
    """Build five of the pictures into `store`."""
    lines = (folder / "manifest.jsonl").read_text().splitlines()[:5]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    needed = [folder / "manifest.jsonl", "--images", folder / "images", "--out", folder / "store"]
    quick = ["--expert", "demo", "--workers", "0", "--shard-rows", "4"]

    def build(*more: str) -> Result:
        return CliRunner().invoke(cache, ["build", *map(str, (*needed, *quick, *more))])

    return build


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(asked_expert, "load_asked", pytest.fail)


@pytest.mark.parametrize("error", ["5", "0", "nan", "-0.001", "0.2"])
def test_an_error_limit_that_cannot_be_is_refused_before_the_expert_is_loaded(
    run: Run, loads_nothing: Callable[[], None], error: str
) -> None:
    loads_nothing()
    result = run("--max-gram-error", error)
    assert isinstance(result.exception, ArgumentError)
    assert f"{float(error)}: is not within 1e-05 to 0.1; expected" in str(result.exception)


def test_a_store_is_gone_on_with_by_its_own_codec_and_error_limit(
    folder: Path, run: Run, loads_nothing: Callable[[], None]
) -> None:
    more = ("--grid", "4x4")
    assert run("--max-gram-error", "0.02", *more).exit_code == 0
    (folder / "store" / "_commit" / "1.json").unlink()
    assert "1 written by this run" in run(*more).stdout
    assert "nothing to do in this run" in run("--codec", "gram", *more).stdout
    card = TeacherCacheWriter.load_card(folder / "store")
    assert card is not None
    assert (card.codec, card.max_gram_error) == ("gram", 0.02)
    loads_nothing()
    for words, said in (
        (("--codec", "fp16"), "codec is 'gram' in the store, 'fp16' asked for (--codec)"),
        (("--max-gram-error", "0.01"), "0.02 in the store, 0.01 asked for (--max-gram-error)"),
        (("--grid", "5x5"), "grid is '4x4' in the store, '5x5' asked for (--grid)"),
        (("--mode", "paper"), "mode is 'aligned' in the store, 'paper' asked for (--mode)"),
        (("--features", "ln_post"), "'last' in the store, 'ln_post' asked for (--features)"),
        (("--alpha", "white"), "alpha is 'black' in the store, 'white' asked for (--alpha)"),
    ):
        result = run(*more, *words)
        assert isinstance(result.exception, TeacherCacheError), words
        assert said in str(result.exception)


def test_codec_gram_alone_begins_with_the_usual_limit(folder: Path, run: Run) -> None:
    assert run("--grid", "4x4", "--codec", "gram").exit_code == 0
    card = TeacherCacheWriter.load_card(folder / "store")
    assert card is not None
    assert card.max_gram_error == 1e-3
    shutil.rmtree(folder / "store")
    assert isinstance(run("--codec", "fp16", "--max-gram-error", "0.01").exception, ArgumentError)
