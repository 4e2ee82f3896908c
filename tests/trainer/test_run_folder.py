import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medalign.trainer.recipe import Recipe, RecipeError
from medalign.trainer.run_folder import RunFolder, check_bytes, is_complete

SAME = {"cache": "a", "records": 3}


@pytest.fixture
def folder(tmp_path: Path, recipe: Callable[..., Recipe]) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path / "run")
    made.begin(recipe(), SAME, resume=True)
    yield made
    made.release()


def write(folder: RunFolder, step: int, text: str = "weights", keep: int = 2) -> Path:
    partial = folder.partial_checkpoint()
    (partial / "adapter").mkdir()
    (partial / "adapter" / "w").write_text(f"{text} {step}")
    published: Path = folder.publish(partial, step, keep)
    return published


def test_a_second_process_is_kept_out_until_the_first_ends(
    folder: RunFolder, recipe: Callable[..., Recipe]
) -> None:
    (folder.path.parent / "r.yaml").write_text(recipe().to_yaml())
    code = (
        "import sys; from pathlib import Path\n"
        "from medalign.trainer.recipe import Recipe\n"
        "from medalign.trainer.run_folder import RunFolder\n"
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

    monkeypatch.setattr("medalign.trainer.run_folder.write_durably", full)
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
