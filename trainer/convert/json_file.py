"""JSON files of a folder that somebody else wrote."""

import json
from pathlib import Path
from typing import Any

from .errors import ConvertError


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that must hold a JSON object.

    Raises:
        ConvertError: it holds something else, or no JSON.
        OSError: it cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConvertError(f"{path} is no JSON object")
    return values
