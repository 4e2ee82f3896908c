"""The mark that makes a checkpoint whole: every file with its size and SHA-256, written last."""

import hashlib
import json
import os
from pathlib import Path
from typing import Final

from ..teacher_cache.durable import write_durably
from .recipe import RecipeError

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
