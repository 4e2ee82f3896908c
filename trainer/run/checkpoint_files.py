"""The mark that makes a checkpoint whole: every file with its size and SHA-256, written last."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...runtime.files import write_durably
from ..recipe.recipe import RecipeError

_MARK: Final = "checkpoint.json"


def step_of(checkpoint: Path) -> int:
    """Step of a folder `step-N`, -1 if it has another name."""
    number = checkpoint.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def seal_folder(folder: Path) -> None:
    """List every file's size and SHA-256 in a mark that is written last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        listing[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    write_durably(
        folder / _MARK, (json.dumps({"files": listing}, indent=2, sort_keys=True) + "\n").encode()
    )


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint's mark is there and every file has its size."""
    try:
        listing = json.loads((folder / _MARK).read_text())["files"]
        return all((folder / name).stat().st_size == f["bytes"] for name, f in listing.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_bytes(folder: Path) -> None:
    """Compare every file of a complete checkpoint with its SHA-256.

    Raises:
        RecipeError: a file changed; names it and says how to go on without this checkpoint.
    """
    listing = json.loads((folder / _MARK).read_text())["files"]
    for name, facts in listing.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                raise RecipeError(
                    f"{folder / name} is damaged; delete {folder} to go on from the checkpoint "
                    "before it"
                )


def append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines at the end of a file.

    Raises:
        OSError: the disk is full, say; the file is as it was.
        ValueError: a number is not finite.
    """
    append(path, "".join(json.dumps(x, allow_nan=False) + "\n" for x in lines).encode())


def append(path: Path, data: bytes) -> None:
    """Add bytes at the end of a file, all of them or none.

    Raises:
        OSError: the disk is full, say; the file is as it was.
    """
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab", buffering=0) as file:
            while data:
                data = data[file.write(data) :]
    except OSError:
        # Half a line would swallow the next one.
        if path.exists():
            os.truncate(path, before)
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; none when there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A kill may have torn the last line.
    return [json.loads(line) for line in lines if line.endswith("\n")]


_REPLACED: Final = ".replaced"
_DROPPED: Final = ".dropped"


def put_folder(written: Path, target: Path) -> None:
    """Rename a fully written folder to `target`; what was there is deleted after that.

    `recover` finishes what a kill between two of the renames left.
    """
    aside = _beside(target, _REPLACED)
    if target.exists():
        target.rename(aside)
    written.rename(target)
    if aside.exists():
        drop_folder(aside)


def drop_folder(folder: Path) -> None:
    """Delete a folder; it has another name before its first file is gone."""
    dropped = _beside(folder, _DROPPED)
    shutil.rmtree(dropped, ignore_errors=True)
    folder.rename(dropped)
    shutil.rmtree(dropped)


def recover(parent: Path, written: Path, is_whole: Callable[[Path], bool]) -> None:
    """Finish what a killed process began: replacing, then deleting.

    Args:
        parent: of the folders that were put and dropped.
        written: the folder that was to be put, if it is still there; it is deleted, or becomes
            the one that it was to replace.
        is_whole: whether a folder holds all that was written into it.
    """
    for aside in parent.glob(f".*{_REPLACED}"):
        target = parent / aside.name[1 : -len(_REPLACED)]
        whole = [folder for folder in (written, aside) if is_whole(folder)]
        if whole and not target.exists():
            whole[0].rename(target)
    for leftover in (written, *parent.glob(f".*{_REPLACED}"), *parent.glob(f".*{_DROPPED}")):
        if leftover.exists():
            drop_folder(leftover)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name.removeprefix('.')}{ending}")
