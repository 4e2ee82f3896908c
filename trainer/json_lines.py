"""Files that grow: one JSON object a line; a kill or a full disk in one spoils no other."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
