"""Files of one JSON object a line; a kill or a full disk in the middle of one spoils no other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines at the end of a file.

    Raises:
        OSError: the disk is full, say; the file is as it was.
        ValueError: a number is not finite.
    """
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        # Half a line would swallow the next one.
        if path.exists():
            with path.open("r+") as file:
                file.truncate(before)
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; none when there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A kill may have torn the last line.
    return [json.loads(line) for line in lines if line.endswith("\n")]
