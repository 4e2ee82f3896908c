import errno
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from medalign.trainer.export import merge
from medalign.trainer.export.export import Wish, export
from medalign.trainer.export.provenance import ExportError

FAST = Wish(images_checked=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_out_that_holds_something_is_left_alone(run: Path, out: Path) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not empty; choose another --out"):
        export(run, out, FAST, print)
    with pytest.raises(ExportError, match="holds something else than an export"):
        export(run, out, Wish(images_checked=0, overwrite=True), print)
    assert names(out) == ["mine.txt"]


def test_an_earlier_export_is_replaced_when_asked(run: Path, out: Path) -> None:
    export(run, out, FAST, print)
    (out / "stale.txt").write_text("from before")
    with pytest.raises(ExportError, match="or give --overwrite"):
        export(run, out, FAST, print)
    export(run, out, Wish(images_checked=0, overwrite=True), print)
    assert "stale.txt" not in names(out)
    assert names(out.parent) == ["out", "run", "student"]


def test_an_out_inside_the_run_or_the_student_or_around_them_is_refused(
    run: Path, student: Path, tmp_path: Path
) -> None:
    for out, where in (
        (run / "adapter", "is inside the run"),
        (run, "is inside the run"),
        (student / "merged", "is inside the student"),
        (tmp_path, "holds the run"),
    ):
        with pytest.raises(ExportError, match=where):
            export(run, out, FAST, print)
    assert not (student / "merged").exists()


@pytest.mark.parametrize("how", ["full", "interrupted"])
def test_a_full_disk_or_an_interrupt_leaves_what_was_there(
    how: str, run: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run, out, FAST, print)
    before = (out / "export.json").read_bytes()
    wish = Wish(images_checked=0, overwrite=True)

    def stop(_tensors: Any, path: Path, **_kwargs: Any) -> None:
        path.write_bytes(b"half")
        if how == "interrupted":
            raise KeyboardInterrupt
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(merge, "save_file", stop)
    with pytest.raises(KeyboardInterrupt if how == "interrupted" else OSError) as error:
        export(run, out, wish, print)
    assert getattr(error.value, "errno", errno.ENOSPC) == errno.ENOSPC
    assert names(out.parent) == ["out", "run", "student"]
    assert (out / "export.json").read_bytes() == before


def test_what_a_killed_export_left_is_swept_by_the_next(run: Path, out: Path) -> None:
    left = out.with_name(".out.writing")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    export(run, out, FAST, print)
    assert not left.exists()
    assert (out / "model.safetensors").stat().st_size > 1_000_000
