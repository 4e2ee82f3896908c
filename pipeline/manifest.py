r"""The manifest: one record per sample, checked before anything is spent on it.

Two spellings are read: JSON Lines (streamed) and LLaVA's JSON array (loaded whole); the first
character that is not blank tells them apart. A record looks like this:

    {"id": "a", "image": "images/a.png", "answer_type": "CLOSED",
     "conversations": [{"from": "human", "value": "<image>\nIs it normal?"},
                       {"from": "gpt", "value": "No"}]}

Image paths are relative to one folder; whoever opens an image resolves its path here, so that none
leads out of that folder.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, TypeVar, cast

IMAGE_PLACEHOLDER = "<image>"
"""Where an image stands in a human turn."""
PROBLEMS_SHOWN = 20
"""How many problems one error message lists; the rest are counted."""

_KNOWN = ("id", "image", "conversations", "answer_type")
_SHAPE = "a manifest is JSON Lines, one whole object per line, or one JSON array of objects"
_BOM = b"\xef\xbb\xbf"
_FOLDERS_KNOWN = 10_000  # a manifest goes through its folders one after the other
_PROGRESS_EVERY = 1000

Member = TypeVar("Member")


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


class ManifestError(ValueError):
    """Say what is wrong with a manifest, or with an image path that it names.

    Attributes:
        problems: one text per problem, each with its line; at most `PROBLEMS_SHOWN` of them.
        total: how many problems there are.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = (), total: int = 1) -> None:
        super().__init__(message)
        self.problems = problems or (message,)
        self.total = total


class _CutOffError(ValueError):
    """JSON that ends before its value does."""


@dataclass(frozen=True, slots=True)
class Absent:
    """Why there is no file at a path; as text, one line for a message.

    Attributes:
        path: as in the manifest.
        reason: what stands in the way, empty where there just is no such file.
        outside: whether the path leads out of the folder.
    """

    path: str
    reason: str = ""
    outside: bool = False

    def __str__(self) -> str:
        """Return the reason where it names the path, else the path, with the reason if any."""
        if self.outside:
            return self.reason
        return shorten(self.path) + (f": {self.reason}" if self.reason else "")


def iter_records(path: Path) -> Iterator[Record]:
    """Yield the records of a manifest in order; JSON Lines are streamed, not held.

    Ids that repeat are not noticed here: that needs all of them, see `read_manifest`.

    Raises:
        ManifestError: at the first record that breaks a rule, or if the file is no manifest.
    """
    for label, _, result in _scan(path):
        if not isinstance(result, Record):
            raise _error(path, [f"{label}: {problem}" for problem in result], len(result))
        yield result


def read_manifest(path: Path) -> list[Record]:
    """Return all records of a manifest, or name everything that is wrong with it at once.

    Raises:
        ManifestError: with the first 20 problems, each naming its line, and the count of the rest.
    """
    return list(checked_records(path))


def checked_records(path: Path) -> Iterator[Record]:
    """Yield what `read_manifest` returns, one by one; errors come after the last record.

    Raises:
        ManifestError: as `read_manifest`, when every record was read.
    """
    problems: list[str] = []
    total = 0
    for label, _, result in scan_records(path):
        if isinstance(result, Record):
            yield result
            continue
        total += len(result)
        room = PROBLEMS_SHOWN - len(problems)
        problems += [f"{label}: {problem}" for problem in result[:room]]
    if total:
        raise _error(path, problems, total)


def scan_records(path: Path) -> Iterator[tuple[str, int, Record | list[str]]]:
    """Yield (label, line, record or its problems); an id used before is a problem too.

    The label is "line 3", or "item 3" in a JSON array.

    Raises:
        ManifestError: the file is no manifest at all.
    """
    first_uses: dict[str, str] = {}
    for label, line, result in _scan(path):
        if isinstance(result, Record):
            first = first_uses.setdefault(result.id, label)
            if first is not label:
                text = f'id "{shorten(result.id)}" was used before, on {first}; ids must be unique'
                yield label, line, [text]
                continue
        yield label, line, result


def _error(path: Path, problems: list[str], total: int) -> ManifestError:
    listed = tuple(problems[:PROBLEMS_SHOWN])
    if total == 1:
        return ManifestError(f"{path}: {listed[0]}", listed)
    lines = "".join(f"\n  {problem}" for problem in listed)
    more = f"\n  and {total - len(listed)} more" if total > len(listed) else ""
    return ManifestError(f"{path}: {total} problems{lines}{more}", listed, total)


def _scan(path: Path) -> Iterator[tuple[str, int, Record | list[str]]]:
    """Yield (label, line, record or its problems) for every record of the file."""
    empty = True
    try:
        with path.open("rb") as file:
            read = _array_items if _first_character(path, file) == b"[" else _json_lines
            file.seek(0)
            for label, line, raw in read(path, file):
                empty = False
                yield label, line, read_record(raw, line)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ManifestError(f"{path}: cannot be read: {reason.lower()}") from None
    if empty:
        raise ManifestError(f"{path}: holds no records; {_SHAPE}")


def _first_character(path: Path, file: BinaryIO) -> bytes:
    head = file.read(4)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ManifestError(f"{path}: is UTF-16, a manifest is UTF-8; save it as UTF-8")
    file.seek(len(_BOM) if head.startswith(_BOM) else 0)
    for block in iter(lambda: file.read(1 << 16), b""):
        if text := block.lstrip():
            return text[:1]
    return b""


def _json_lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, object]]:
    """Yield (label, line, value); a value that cannot be read is a ValueError with the reason."""
    first = True
    for line, data in enumerate(file, start=1):
        stripped = (data.removeprefix(_BOM) if line == 1 else data).strip()
        if not stripped:
            continue
        if b"\0" in stripped:
            raise ManifestError(f"{path}: line {line}: holds a NUL byte; this is no text file")
        value = _parse(stripped)
        if first and isinstance(value, _CutOffError):
            # Pretty-printed JSON: every further line would be one more misleading problem.
            raise ManifestError(f"{path}: line {line}: {value}; {_SHAPE}")
        first = False
        yield f"line {line}", line, value


def _array_items(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, object]]:
    items = _parse(file.read().removeprefix(_BOM))
    if not isinstance(items, list):
        raise ManifestError(f"{path}: {items}; {_SHAPE}")
    for number, item in enumerate(items, start=1):
        yield f"item {number}", number, item
        items[number - 1] = None  # the record holds what it needs


def _parse(data: bytes) -> object:
    """Return the JSON value of `data`, or (not raise) a ValueError that says what is wrong."""
    try:
        text = data.decode("utf-8")
        return _DECODER.decode(text)
    except UnicodeDecodeError as error:
        return ValueError(f"is not UTF-8 at byte {error.start + 1}; save the file as UTF-8")
    except json.JSONDecodeError as error:
        kind = _CutOffError if error.pos >= len(text.rstrip()) else ValueError
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        return kind(f"is not valid JSON at {at}: {_uncapitalised(error.msg)}")
    except RecursionError:
        return ValueError("is nested too deeply to be a record")
    except ValueError as error:  # a number with more digits than Python converts, NaN
        reason = _uncapitalised(str(error).partition(";")[0])
        return ValueError(f"is not valid JSON: {reason}")


def _uncapitalised(text: str) -> str:
    """A sentence of Python's as the end of one's own; names within it stay as they are."""
    return text[:1].lower() + text[1:]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the value {name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # json.loads would make one a line


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


def resolve_image(root: Path, relative: str) -> Path:
    """Return where an image lies, certain that it lies inside `root`.

    Whether the file exists is not checked.

    Raises:
        ManifestError: for an absolute path, `..`, a backslash, or a link that leads out of `root`.
    """
    return Path(ImageFolder(root).resolve(relative))


class ImageFolder:
    """A folder of images, for many paths: links in folders of the path are followed once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # realpath, not Path.resolve: the latter raises RuntimeError on a loop of links.
        self._base = os.path.realpath(root)
        self._inside = os.path.join(self._base, "")  # noqa: PTH118
        self._folders: dict[str, str] = {}

    def resolve(self, relative: str) -> str:
        """Do what `resolve_image` does.

        Raises:
            ManifestError: as `resolve_image`.
        """
        try:
            check_path("image", relative)
        except ValueError as error:
            raise ManifestError(str(error)) from None
        folder, _, name = relative.rpartition("/")
        real = os.path.join(self._folder(folder), name)  # noqa: PTH118
        if os.path.islink(real):  # noqa: PTH114
            real = os.path.realpath(real)
        if real.startswith(self._inside):
            return real
        raise ManifestError(
            f'image "{shorten(relative)}" leads out of {self._root} through a link; '
            "copy the file into the image folder or pass a folder that holds both"
        )

    def absence(self, relative: str) -> Absent | None:
        """Return why there is no regular file at a path, or None; the file is not opened."""
        try:
            regular = stat.S_ISREG(os.stat(self.resolve(relative)).st_mode)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            regular = False
        except ManifestError as error:
            return Absent(relative, str(error), outside=True)
        except OSError as error:  # a name too long, a folder that may not be entered, a loop
            return Absent(relative, (error.strerror or str(error)).lower())
        return None if regular else Absent(relative)

    def _folder(self, folder: str) -> str:
        real = self._folders.get(folder)
        if real is None:
            if len(self._folders) == _FOLDERS_KNOWN:
                self._folders.clear()
            real = os.path.realpath(os.path.join(self._base, folder))  # noqa: PTH118
            self._folders[folder] = real
        return real


def image_paths(records: Iterable[Record]) -> list[str]:
    """Return every image of a manifest once, in its order."""
    return list(dict.fromkeys(path for record in records for path in record.images))


def find_images(
    root: Path, paths: Iterable[str], tell: Callable[[int], object] | None = None
) -> tuple[list[str], dict[str, Absent]]:
    """Sort images into those that are files in a folder and those that are not.

    Args:
        root: the folder.
        paths: relative to it.
        tell: called now and then with how many more paths were checked.

    Returns:
        those that are there, in order; and the others, each with the reason.
    """
    folder = ImageFolder(root)
    there: list[str] = []
    absent: dict[str, Absent] = {}
    count = 0
    for count, path in enumerate(paths, start=1):
        if absence := folder.absence(path):
            absent[path] = absence
        else:
            there.append(path)
        if tell is not None and count % _PROGRESS_EVERY == 0:
            tell(_PROGRESS_EVERY)
    if tell is not None:
        tell(count % _PROGRESS_EVERY)
    return there, absent


def even(members: Sequence[Member], count: int | None) -> list[Member]:
    """Return evenly spread members of a list, the first and the last included; None takes all."""
    if count is None or len(members) <= count:
        return list(members)
    steps = max(1, count - 1)
    return [members[k * (len(members) - 1) // steps] for k in range(count)]


def shorten(text: str, limit: int = 120) -> str:
    """Return text fit for one line of a message: printable and not too long."""
    return printable(text[:limit]) + "..." * (len(text) > limit)


def printable(text: str) -> str:
    r"""Return text that a terminal shows as it is, in one line; control characters are escaped.

    A line break becomes `\n`, an escape `\x1b`, half a character `\ud800`.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
