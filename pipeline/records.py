"""One record of a manifest: what it holds, and every rule that it must keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

IMAGE_PLACEHOLDER = "<image>"
"""Where an image stands in a human turn."""

_KNOWN = ("id", "image", "conversations", "answer_type")


@dataclass(frozen=True, slots=True)
class Turn:
    """Hold one turn of a conversation."""

    role: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Hold one sample of a manifest.

    Attributes:
        id: unique in the manifest; a whole number in the file becomes its decimal text.
        images: paths relative to the image folder, spelt as in the file; () means text only.
        conversations: turns, human first, then alternating.
        answer_type: "OPEN", "CLOSED" or None.
        fields: every other field as it was read (options, report, modality, split, mask, ...).
        line: line number in JSON Lines, number of the item in a JSON array; both from 1.
    """

    id: str
    images: tuple[str, ...]
    conversations: tuple[Turn, ...]
    answer_type: str | None
    fields: Mapping[str, Any] = field(hash=False)
    line: int


def read_record(raw: object, line: int) -> Record | list[str]:
    """Return the record of a parsed JSON value, or all that is wrong with it.

    A ValueError in place of a value stands for text that could not be parsed.
    """
    if isinstance(raw, ValueError):
        return [str(raw)]
    if not isinstance(raw, dict):
        return [f"is {_kind(raw)}, a record is a JSON object"]
    values: dict[str, Any] = {}
    problems = []
    for name, read in _READERS.items():
        try:
            values[name] = read(raw)
        except ValueError as error:
            problems.append(str(error))
    if "images" in values and "conversations" in values:
        problems += _check_placeholders(values["images"], values["conversations"])
    return problems or Record(line=line, **values)


def _id(raw: dict[str, Any]) -> str:
    value = raw.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text("id", value)


def _images(raw: dict[str, Any]) -> tuple[str, ...]:
    value = raw.get("image")
    if value is None:
        return ()
    paths = value if isinstance(value, list) else [value]
    return tuple(check_path("image", path) for path in paths)


def _turns(raw: dict[str, Any]) -> tuple[Turn, ...]:
    value = raw.get("conversations")
    if not isinstance(value, list) or not value:
        raise ValueError("`conversations` must be a list of at least one turn")
    return tuple(_turn(number, turn) for number, turn in enumerate(value))


def _turn(index: int, raw: object) -> Turn:
    name = f"turn {index + 1}"
    if not isinstance(raw, dict):
        raise ValueError(f"{name} is {_kind(raw)}, a turn is an object with `from` and `value`")
    role, text = raw.get("from"), raw.get("value")
    if role not in ("human", "gpt"):
        raise ValueError(f"{name} is from {_show(role)}, known are human and gpt")
    expected = "human" if index % 2 == 0 else "gpt"
    if role != expected:
        raise ValueError(f"{name} is from {role}, must be from {expected}: turns alternate")
    if role == "human":
        text = _text(f"{name} (human)", text)
    elif not isinstance(text, str):
        raise ValueError(f"{name} (gpt) has {_kind(text)} as `value`, must be a string")
    elif IMAGE_PLACEHOLDER in text:
        raise ValueError(f"{name} (gpt) holds {IMAGE_PLACEHOLDER}, only human turns may")
    else:
        _check_encodable(f"{name} (gpt)", text)
    return Turn(cast('Literal["human", "gpt"]', role), text)


def _answer_type(raw: dict[str, Any]) -> str | None:
    value = raw.get("answer_type")
    if value is None:
        return None
    kind = value.upper() if isinstance(value, str) else value
    if kind not in ("OPEN", "CLOSED"):
        raise ValueError(f"`answer_type` is {_show(value)}, must be OPEN or CLOSED")
    return "OPEN" if kind == "OPEN" else "CLOSED"  # one object for millions of records


def _fields(raw: dict[str, Any]) -> dict[str, Any]:
    if raw.get("mask") is not None:
        check_path("mask", raw["mask"])
    return {name: value for name, value in raw.items() if name not in _KNOWN}


_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "id": _id,
    "images": _images,
    "conversations": _turns,
    "answer_type": _answer_type,
    "fields": _fields,
}


def _check_placeholders(images: tuple[str, ...], turns: tuple[Turn, ...]) -> list[str]:
    count = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns[::2])
    if count == len(images):
        return []
    return [
        f"the human turns hold {count} {IMAGE_PLACEHOLDER} but `image` names {len(images)}; "
        "they must be as many"
    ]


def check_path(name: str, value: object) -> str:
    """Return a path that stays inside its folder as far as its text tells.

    Raises:
        ValueError: for an absolute path, `..`, a backslash, a URL or what is no path at all.
    """
    path = _text(name, value)
    parts = set(path.split("/"))  # not pathlib: this runs for every record of millions
    if "\\" in path or "\0" in path:
        reason = "holds a backslash or NUL, separate folders by /"
    elif path.startswith("/") or path[1:2] == ":":
        reason = "is absolute, must be relative to the image folder"
    elif ".." in parts:
        reason = "holds `..`, must stay inside the image folder"
    elif "://" in path:
        reason = "is a URL, download the image and name the file"
    elif parts <= {"", "."}:
        reason = "names no file"
    else:
        return path
    raise ValueError(f'`{name}` "{shorten(path)}" {reason}')


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{name}` is {_kind(value)}, must be a string that is not blank")
    _check_encodable(name, value)
    return value


def _check_encodable(name: str, text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, written as \ud800 in JSON
        raise ValueError(f"`{name}` holds half a character (a lone surrogate)") from None


def _kind(value: object) -> str:
    if value is None:
        return "missing or null"
    if isinstance(value, str):
        return "text" if value.strip() else "blank text"
    names = {dict: "an object", list: "a list", bool: "true or false"}
    return names.get(type(value), "a number")


def _show(value: object) -> str:
    return f'"{shorten(value)}"' if isinstance(value, str) else _kind(value)


def shorten(text: str, limit: int = 120) -> str:
    """Return text fit for one line of a message: printable and not too long."""
    return printable(text[:limit]) + "..." * (len(text) > limit)


def printable(text: str) -> str:
    r"""Return text that a terminal shows in one line, as it is: what it would obey is escaped.

    A line break becomes `\n`, an escape `\x1b`, half a character `\ud800`.
    """
    if text.isprintable():
        return text
    plain = (each if each.isprintable() else each.encode("unicode_escape") for each in text)
    return "".join(each if isinstance(each, str) else each.decode() for each in plain)
