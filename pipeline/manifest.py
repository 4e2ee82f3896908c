r"""The manifest: one record per sample, checked before anything is spent on it.

Two spellings are read: JSON Lines (streamed) and LLaVA's JSON array (loaded whole); the first
character that is not blank tells them apart. A record looks like this:

    {"id": "a", "image": "images/a.png", "answer_type": "CLOSED",
     "conversations": [{"from": "human", "value": "<image>\nIs it normal?"},
                       {"from": "gpt", "value": "No"}]}
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from .records import IMAGE_PLACEHOLDER as IMAGE_PLACEHOLDER
from .records import Record as Record
from .records import Turn as Turn
from .records import check_path, read_record, shorten

PROBLEMS_SHOWN = 20
"""How many problems one error message lists; the rest are counted."""

_FOLDERS_KEPT = 10_000  # a manifest goes through its folders one after the other
_BOM = b"\xef\xbb\xbf"
_SHAPE = "a manifest is JSON Lines, one whole object per line, or one JSON array of objects"


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


def iter_records(path: Path) -> Iterator[Record]:
    """Yield the records of a manifest in order; JSON Lines are streamed, not held.

    Ids that repeat are not noticed here: that needs all of them, see `read_manifest`.

    Raises:
        ManifestError: at the first record that breaks a rule, or if the file is no manifest.
    """
    for where, _, found in _scan(path):
        if isinstance(found, Record):
            yield found
        else:
            raise _error(path, [f"{where}: {problem}" for problem in found], len(found))


def read_manifest(path: Path) -> list[Record]:
    """Return all records of a manifest, or name everything that is wrong with it at once.

    Raises:
        ManifestError: with the first 20 problems, each naming its line, and the count of the rest.
    """
    return list(checked_records(path))


def checked_records(path: Path) -> Iterator[Record]:
    """Yield what `read_manifest` returns, one by one; what is wrong is only told at the end.

    Raises:
        ManifestError: as `read_manifest`, when every record was looked at.
    """
    problems: list[str] = []
    total = 0
    for where, _, found in scan_records(path):
        if isinstance(found, Record):
            yield found
            continue
        total += len(found)
        problems += [f"{where}: {each}" for each in found[: PROBLEMS_SHOWN - len(problems)]]
    if total:
        raise _error(path, problems, total)


def scan_records(path: Path) -> Iterator[tuple[str, int, Record | list[str]]]:
    """Yield (where, line, record or all that is wrong with it); an id used before is wrong too.

    Raises:
        ManifestError: the file is no manifest at all.
    """
    first_seen: dict[str, str] = {}
    for where, line, found in _scan(path):
        if isinstance(found, Record):
            earlier = first_seen.setdefault(found.id, where)
            if earlier is not where:
                text = f'id "{shorten(found.id)}" was used before, on {earlier}; ids must be unique'
                yield where, line, [text]
                continue
        yield where, line, found


def resolve_image(root: Path, relative: str) -> Path:
    """Return where an image lies, certain that it lies inside `root`.

    Whether the file exists is not looked at.

    Raises:
        ManifestError: for an absolute path, `..`, a backslash, or a link that leads out of `root`.
    """
    return Path(ImageFolder(root).resolve(relative))


class ImageFolder:
    """A folder of images, to resolve many paths: where folders lie is looked up once."""

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

    def _folder(self, folder: str) -> str:
        found = self._folders.get(folder)
        if found is None:
            if len(self._folders) == _FOLDERS_KEPT:
                self._folders.clear()
            found = os.path.realpath(os.path.join(self._base, folder))  # noqa: PTH118
            self._folders[folder] = found
        return found


def _scan(path: Path) -> Iterator[tuple[str, int, Record | list[str]]]:
    """Yield (where, line, record or its problems) for every record of the file."""
    try:
        with path.open("rb") as file:
            start = _first_character(path, file)
            file.seek(0)
            empty = True
            for where, line, raw in (
                _array_items(path, file) if start == b"[" else _json_lines(path, file)
            ):
                empty = False
                yield where, line, read_record(raw, line)
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
    """Yield (where, line, value); a value that cannot be read is a ValueError that says why."""
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


class _CutOffError(ValueError):
    """JSON that ends before its value does."""


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


def _error(path: Path, problems: list[str], total: int) -> ManifestError:
    shown = tuple(problems[:PROBLEMS_SHOWN])
    if total == 1:
        return ManifestError(f"{path}: {shown[0]}", shown)
    listed = "".join(f"\n  {problem}" for problem in shown)
    more = f"\n  and {total - len(shown)} more" if total > len(shown) else ""
    return ManifestError(f"{path}: {total} problems{listed}{more}", shown, total)
