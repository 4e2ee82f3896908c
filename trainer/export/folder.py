"""The folder that an export becomes: whole or absent."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ...teacher_cache.durable import make_folder, write_durably
from .origin import ExportError

RECORD: Final = "export.json"


def as_json(value: Any) -> bytes:
    """JSON as every file of an export has it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def check_target(out: Path, run: Path, student: Path, *, overwrite: bool) -> None:
    """Refuse an --out that would cost somebody else's files.

    Raises:
        ExportError: `out` is a file, lies inside the run or the student, or holds something;
            with `overwrite`, something that is no export.
    """
    place = out.resolve()
    for owner, name in ((run.resolve(), "run"), (student.resolve(), "student")):
        if place == owner or owner in place.parents:
            raise ExportError(f"{out} is inside the {name} {owner}; choose another --out")
        if place in owner.parents:
            raise ExportError(f"{out} holds the {name} {owner}; choose another --out")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} exists and is no folder; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ExportError(f"{out} is not empty; choose another --out, or give --overwrite")
        if not (out / RECORD).is_file():
            raise ExportError(f"{out} holds something else than an export; choose another --out")


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`, and turn it into `out` when the block ends well.

    When the block fails, by a full disk or Ctrl-C too, nothing is left of it. Only a kill leaves
    the hidden folder `.NAME.writing`, which the next export sweeps.
    """
    out = out.resolve()
    partial = out.with_name(f".{out.name}.writing")
    make_folder(out.parent)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        _replace(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def record(folder: Path, facts: dict[str, Any]) -> None:
    """Write `export.json`: facts, and size and SHA-256 of every other file."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": digest}
    write_durably(folder / RECORD, as_json({**facts, "files": files}))


def _replace(out: Path, partial: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
