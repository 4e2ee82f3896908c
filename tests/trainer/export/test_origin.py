import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from medalign.trainer.export.export import Wish, export
from medalign.trainer.export.provenance import ExportError, find_origin
from medalign.trainer.recipe.recipe import RecipeError

FAST = Wish(images_checked=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("finished", "asked", "step"),
    [(True, None, None), (True, "step-2", 2), (False, None, 4), (False, "last", 4)],
)
def test_a_checkpoint_is_chosen(
    finished: bool,
    asked: str | None,
    step: int | None,
    student: Path,
    make_run: Callable[..., Path],
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", student, finished=finished)
    found = find_origin(run, asked)
    inside = run / "adapter" if step is None else run / "checkpoints" / f"step-{step}" / "adapter"
    assert found.adapter == inside.resolve() if step else found.adapter == inside
    assert found.step == (step or 4)
    assert found.metrics["step"] == found.step


def test_the_best_checkpoint_is_the_one_its_link_names(run: Path) -> None:
    with pytest.raises(ExportError, match="no complete checkpoint 'best'; there are: step-2, st"):
        find_origin(run, "best")
    (run / "checkpoints" / "best").symlink_to("step-2")
    assert find_origin(run, "best").step == 2


@pytest.mark.parametrize("asked", ["step-3", "step-2/adapter", "../../student", ""])
def test_a_checkpoint_that_is_none_is_refused(run: Path, asked: str) -> None:
    with pytest.raises(ExportError, match="has no complete checkpoint"):
        find_origin(run, asked)


def test_a_changed_byte_of_a_checkpoint_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "step-2" / "adapter" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecipeError, match="is damaged"):
        find_origin(run, "step-2")


def test_a_folder_that_is_no_run_is_refused(student: Path, out: Path) -> None:
    with pytest.raises(ExportError, match=r"is no run folder: it has no recipe\.yaml"):
        export(student, out, FAST, print)


def test_a_run_without_a_checkpoint_is_refused(
    student: Path, make_run: Callable[..., Path], tmp_path: Path, out: Path
) -> None:
    run = make_run(tmp_path / "run", student, finished=False)
    for folder in (run / "checkpoints").iterdir():
        (folder.unlink if folder.is_symlink() else lambda f=folder: shutil.rmtree(f))()
    with pytest.raises(ExportError, match="nothing to export: no checkpoint was written yet"):
        export(run, out, FAST, print)


def test_a_student_that_moved_is_asked_for_and_a_changed_one_is_refused(
    run: Path, student: Path, out: Path, tmp_path: Path
) -> None:
    moved = student.rename(tmp_path / "moved")
    with pytest.raises(ExportError, match=r"is not at .*student; give --student DIR"):
        export(run, out, FAST, print)
    export(run, out, Wish(images_checked=0, student=moved), print)
    tensors = load_file(moved / "model.safetensors")
    save_file({k: t.half() for k, t in tensors.items()}, moved / "model.safetensors")
    with pytest.raises(ExportError, match=r"is not the student that .* was trained on"):
        export(run, out, Wish(student=moved), print)


def test_a_student_of_another_family_is_refused_by_name(run: Path, student: Path) -> None:
    (student / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(ExportError, match="is a 'qwen2_5_vl' student; only `llava`"):
        find_origin(run)
    (student / "config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(ExportError, match="is a 'mistral' model"):
        find_origin(run)
