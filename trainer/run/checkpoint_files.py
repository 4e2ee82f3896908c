"""The mark that makes a checkpoint whole: every file with its size and SHA-256, written last."""

import json
from pathlib import Path
from typing import Final

from ...runtime.files import sha256_file, sync_files, write_durably
from ..recipe.recipe import RecipeError

_MARK: Final = "checkpoint.json"


def step_of(checkpoint: Path) -> int:
    """Step of a folder `step-N`, -1 if it has another name."""
    number = checkpoint.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def seal_folder(folder: Path) -> None:
    """List every file's size and SHA-256 in a mark that is written last."""
    mark = json.dumps({"files": sync_files(folder)}, indent=2, sort_keys=True) + "\n"
    write_durably(folder / _MARK, mark.encode())


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
        if sha256_file(folder / name) != facts["sha256"]:
            raise RecipeError(
                f"{folder / name} is damaged; delete {folder} to continue from the checkpoint "
                "before it"
            )
