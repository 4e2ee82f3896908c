"""Read the JSON files of data sets, with messages that name file and item but no text of them."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from .definition import DataSetError


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataSetError: it is no JSON in UTF-8.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        reason = f"is not valid JSON at line {error.lineno}: {error.msg.lower()}"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError:
        reason = "holds a number of thousands of digits"
    # From None: the error of the decoder holds the whole text.
    raise DataSetError(f"{path}: {reason}; download it again")


def read_items(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, item) of a JSON file that is a list of objects.

    Raises:
        DataSetError: it is something else.
    """
    items = read_json(path)
    if not isinstance(items, list):
        raise DataSetError(f"{path}: must be a list of objects; is this the set's own file?")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise DataSetError(f"{path}: item {number} is no object; is this the set's own file?")
        yield f"{path.name} item {number}", item


def as_text(value: object) -> str:
    """Return a text, or a number as text (answers such as 2 stand as numbers in some sets).

    Anything else, NaN among it, is "", which is refused as blank where a text is needed.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, int) or math.isfinite(value):
        return str(value)
    return ""


def kept(item: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of an item that are to be kept, where it has them."""
    return {name: item[name] for name in names if item.get(name) is not None}


def answer_type(item: Mapping[str, Any]) -> Literal["OPEN", "CLOSED"] | None:
    """Return what `answer_type` says, blanks around it and its case aside; None for neither."""
    kind = as_text(item.get("answer_type")).strip().upper()
    return "OPEN" if kind == "OPEN" else "CLOSED" if kind == "CLOSED" else None


def read_json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, item) of a file with one JSON object a line; blank lines do not count.

    Raises:
        DataSetError: a line is something else.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                item = None
            if not isinstance(item, dict):
                raise DataSetError(f"{path}: line {number} is no JSON object; download it again")
            yield f"{path.name} line {number}", item
