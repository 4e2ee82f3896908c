"""Folders that are replaced and dropped whole: a kill in between leaves no half of one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

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
