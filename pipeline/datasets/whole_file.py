"""A file that is written whole or not at all."""

import contextlib
import json
import os
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """Write indented JSON under a temporary name, then rename it; missing folders are made."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
