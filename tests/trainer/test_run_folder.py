import errno
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medalign.trainer.recipe.recipe import Recipe, RecipeError
from medalign.trainer.run.best_checkpoint import Best, Contest
from medalign.trainer.run.checkpoint_files import check_bytes, is_complete
from medalign.trainer.run.folder import RunFolder

SAME = {"cache": "a", "records": 3}


@pytest.fixture
def folder(tmp_path: Path, recipe: Callable[..., Recipe]) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path / "run")
    made.begin(recipe(), SAME, resume=True)
    yield made
    made.release()


def write(
    folder: RunFolder,
    step: int,
    text: str = "weights",
    keep: int = 2,
    measured: str | None = None,
    contest: Contest | None = None,
) -> Path:
    partial = folder.partial_checkpoint()
    (partial / "adapter").mkdir()
    (partial / "adapter" / "w").write_text(f"{text} {step}")
    if measured is not None:
        (partial / "validation.json").write_text(measured)
    published: Path = folder.publish(partial, step, keep, contest)
    return published


class KilledError(BaseException):
    """Stands for a kill: nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Kill at the `call`-th rename or deletion of a folder, a deletion after its first file."""
    rename, rmtree, calls = Path.rename, shutil.rmtree, itertools.count(1)

    def killed_rename(self: Path, target: Path) -> Path:
        if next(calls) == call:
            raise KilledError
        return rename(self, target)

    def killed_rmtree(path: Path, **options: Any) -> None:
        if path.exists() and next(calls) == call:
            next(file for file in sorted(path.rglob("*")) if file.is_file()).unlink()
            raise KilledError
        rmtree(path, **options)

    monkeypatch.setattr(Path, "rename", killed_rename)
    monkeypatch.setattr(shutil, "rmtree", killed_rmtree)


def test_a_second_process_is_kept_out_until_the_first_ends(
    folder: RunFolder, recipe: Callable[..., Recipe]
) -> None:
    (folder.path.parent / "r.yaml").write_text(recipe().to_yaml())
    code = (
        "import sys; from pathlib import Path\n"
        "from medalign.trainer.recipe.recipe import Recipe\n"
        "from medalign.trainer.run.folder import RunFolder\n"
        f"run = RunFolder(Path({str(folder.path)!r}))\n"
        f"run.begin(Recipe.from_yaml(run.path.parent / 'r.yaml'), {SAME!r}, resume=True)\n"
    )
    words = [sys.executable, "-W", "ignore", "-c", code]
    refused = subprocess.run(words, capture_output=True, text=True)
    assert "another process trains in" in refused.stderr
    folder.release()
    assert subprocess.run(words, capture_output=True).returncode == 0


def test_the_newest_complete_checkpoint_counts_and_old_ones_go(folder: RunFolder) -> None:
    for step in (9, 10, 11):
        write(folder, step)
    assert folder.newest() == folder.checkpoints / "step-11"
    assert (folder.checkpoints / "last").resolve() == (folder.checkpoints / "step-11").resolve()
    assert not (folder.checkpoints / "step-9").exists()


def test_a_checkpoint_cut_short_does_not_count(folder: RunFolder) -> None:
    write(folder, 1)
    torn = write(folder, 2)
    (torn / "adapter" / "w").write_text("w")
    assert not is_complete(torn)
    assert folder.newest() == folder.checkpoints / "step-1"


def test_a_checkpoint_with_a_changed_byte_is_refused_by_name(folder: RunFolder) -> None:
    done = write(folder, 1)
    (done / "adapter" / "w").write_text("weighty 1"[: len("weights 1")])
    assert is_complete(done)  # the size alone does not tell
    with pytest.raises(RecipeError, match=r"adapter/w is damaged; delete .*step-1"):
        check_bytes(done)


def test_a_full_disk_while_saving_keeps_the_checkpoint_before(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, 1)

    def full(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("medalign.trainer.run.checkpoint_files.write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        write(folder, 2)
    monkeypatch.undo()
    assert folder.newest() == folder.checkpoints / "step-1"
    assert write(folder, 2) == folder.newest()


def test_a_torn_last_line_of_metrics_is_dropped_on_resume(folder: RunFolder) -> None:
    for step in (1, 2, 3):
        folder.append_metrics({"step": step})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    folder.rewind(2)
    folder.append_metrics({"step": 3})
    assert [line["step"] for line in folder.metrics()] == [1, 2, 3]


def test_where_files_lie_and_how_often_is_saved_may_change(
    folder: RunFolder, recipe: Callable[..., Recipe]
) -> None:
    free = {"data.images": "/x", "data.workers": 7, "run.save_every": 1, "deepspeed.stage": 1}
    folder.begin(recipe(**free), SAME, resume=True)


def test_another_recipe_or_cache_is_refused_naming_both_values(
    folder: RunFolder, recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=r"loss\.alpha was 1\.0, is 0\.5"):
        folder.begin(recipe(**{"loss.alpha": 0.5}), SAME, resume=True)
    with pytest.raises(RecipeError, match=r"another cache \('a', now 'b'\)"):
        folder.begin(recipe(), {**SAME, "cache": "b"}, resume=True)


def test_a_file_in_the_way_is_refused(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RecipeError, match="is no folder"):
        RunFolder(tmp_path / "run").begin(recipe(), SAME, resume=True)


def names(folder: RunFolder) -> list[str]:
    below = folder.checkpoints.iterdir()
    return sorted(path.name for path in below if path.is_dir() and not path.is_symlink())


@pytest.mark.parametrize("call", range(1, 5))
def test_a_kill_while_a_checkpoint_is_written_again_leaves_it_whole(
    folder: RunFolder,
    recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    write(folder, 1, "old")
    with monkeypatch.context() as patch:
        kill_at(patch, call)
        with pytest.raises(KilledError):
            write(folder, 1, "new")
    folder.release()
    kept = folder.begin(recipe(), SAME, resume=True)
    assert kept == folder.checkpoints / "step-1"
    check_bytes(kept)
    # The new one is whole before the old one is touched: only a kill before that goes back.
    assert (kept / "adapter" / "w").read_text() == ("old 1" if call == 1 else "new 1")
    assert names(folder) == ["step-1"]


def test_a_new_checkpoint_that_is_lost_gives_way_to_the_one_it_was_to_replace(
    folder: RunFolder, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, 1, "old")
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(KilledError):
            write(folder, 1, "new")
    (folder.checkpoints / ".writing" / "adapter" / "w").write_text("")  # a loss of power, say
    folder.release()
    kept = folder.begin(recipe(), SAME, resume=True)
    assert kept is not None
    assert (kept / "adapter" / "w").read_text() == "old 1"
    assert names(folder) == ["step-1"]


@pytest.mark.parametrize("call", [2, 3])
def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_nothing_of_it(
    folder: RunFolder,
    recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    write(folder, 1, keep=1)
    with monkeypatch.context() as patch:
        kill_at(patch, call)
        with pytest.raises(KilledError):
            write(folder, 2, keep=1)
    folder.release()
    assert folder.begin(recipe(), SAME, resume=True) == folder.checkpoints / "step-2"
    assert all(is_complete(folder.checkpoints / name) for name in names(folder))
    write(folder, 3, keep=1)
    assert names(folder) == ["step-3"]


def measured(step: int, lm: float, records: str = "mine") -> str:
    return json.dumps({"step": step, "lm": lm, "records": records})


def test_where_nothing_has_won_yet_no_earlier_winner_is_shown(folder: RunFolder) -> None:
    mine, other = Contest("lm", "mine"), Contest("lm", "other")
    first = write(folder, 1, measured=measured(1, 0.5), contest=mine)
    folder.finish(first, folder.best(mine))
    best = folder.checkpoints / "best"
    assert best.resolve() == first.resolve()
    assert (folder.best_adapter / "w").read_text() == "weights 1"
    for step in (2, 3):
        last = write(folder, step, contest=other)
    assert not best.is_symlink()
    folder.finish(last, folder.best(other))
    assert not folder.best_adapter.exists()


def test_a_finished_run_shows_the_winner_of_another_contest(folder: RunFolder) -> None:
    first = write(folder, 1, measured=measured(1, 0.5, "old"), contest=Contest("lm", "old"))
    last = write(folder, 2, measured=measured(2, 0.7, "new"), contest=Contest("lm", "old"))
    assert (folder.checkpoints / "best").resolve() == first.resolve()
    folder.finish(last, folder.best(Contest("lm", "new")))
    assert (folder.checkpoints / "best").resolve() == last.resolve()
    assert (folder.best_adapter / "w").read_text() == "weights 2"


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"records": "mine", "lm": "low"}', "\0\0"])
def test_a_damaged_measurement_counts_as_none(folder: RunFolder, text: str) -> None:
    contest = Contest("lm", "mine")
    write(folder, 1, measured=text, contest=contest)
    assert folder.best(contest) is None
    second = write(folder, 2, measured=measured(2, 0.5), contest=contest)
    assert folder.best(contest) == Best(second, 2, "lm", 0.5)


def test_a_run_goes_on_whatever_its_recipe_says_of_the_paper_or_of_the_split_of_a_step(
    folder: RunFolder, recipe: Callable[..., Recipe]
) -> None:
    folder.release()
    changes = {"paper.data": "slake", "paper.assumed": {"loss.layer": "so"}, "data.per_step": 8}
    again = RunFolder(folder.path)
    assert again.begin(recipe(**changes), SAME, resume=True) is None
    again.release()
    assert "  data: slake" in (folder.path / "recipe.yaml").read_text()
    third = RunFolder(folder.path)
    third.begin(recipe(), SAME, resume=True)
    third.release()
