"""Read the JSON files of data sets and the short texts in them: words, yes and no, answer types.

Messages name file and item, but hold no text of them.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from .definition import DataSetError

_WORD: Final = re.compile(r"[^\W_]+")
_SIGN: Final = re.compile(
    r"""[+<>=\u00b1\u00d7\u2190-\u2193%\u2030]  # tell answers apart wherever they stand
    | \.(?=\d)                                  # .5 is not 5
    | (?<![^\W_])-(?=\.?\d|ve\b)               # -5, -ve
    | (?<=\()-(?=\))                            # HER2 (-)
    | (?<=[^\W_])-(?=\s)                        # HER2- positive
    | (?<=[^\W_])\ ?-(?=\s*(?:$|[.,;:)\]]))     # HER2 -""",
    re.VERBOSE,
)
_TOKEN: Final = re.compile(f"{_WORD.pattern}|{_SIGN.pattern}", re.VERBOSE)
_ONE_SPELLING: Final = str.maketrans(
    {"\u2264": "<=", "\u2265": ">=", "\u2010": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-"}
)
_YES_NO: Final = re.compile(r"[\s\-*]*(yes|no)[\s*]*(?:$|[.,;:(\u2013\u2014-])", re.IGNORECASE)


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
    """Yield (label, item) of a JSON file that is a list of objects.

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


def read_json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (label, item) of a file with one JSON object a line; blank lines do not count.

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


def fields_of(item: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return those fields of an item that it has."""
    return {name: item[name] for name in names if item.get(name) is not None}


def answer_type(item: Mapping[str, Any]) -> Literal["OPEN", "CLOSED"] | None:
    """Return what `answer_type` says, blanks around it and its case aside; None for neither."""
    kind = as_text(item.get("answer_type")).strip().upper()
    return "OPEN" if kind == "OPEN" else "CLOSED" if kind == "CLOSED" else None


def plain_words(text: str) -> str:
    """Return the words of a text: NFKC, case folded, without punctuation.

    Signs that make another answer of the same words stay, each as a word: "HER2+" and "HER2 -",
    "< 5 mm" and "> 5 mm". A hyphen within a word, and a dash between two, are punctuation. A text
    without any word is returned as it is, since "+" and "-" are different answers.
    """
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_ONE_SPELLING)
    if not _WORD.search(plain):
        return " ".join(plain.split())
    return " ".join(token.strip() for token in _TOKEN.findall(plain))


def leading_yes_no(text: str) -> str | None:
    """Return "Yes" or "No" where a text says so, perhaps with an explanation; else None.

    "- No.", "No (since ...)" and "No, ..." are answers; "No information is given" is none.
    """
    match = _YES_NO.match(text)
    return match[1].capitalize() if match else None


def yes_no_type(answer: str) -> Literal["OPEN", "CLOSED"]:
    """Return CLOSED for the answers yes and no, in any case."""
    return "CLOSED" if answer.strip().lower() in ("yes", "no") else "OPEN"
