"""Fingerprints of images on disk, so that an interrupted comparison goes on where it was.

JSON Lines: a first line that says how they were made, then one line an image. A last line that was
cut short is dropped.
"""

import base64
import binascii
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import PIL

from ...runtime.files import lock
from ...runtime.processes import Workers
from ...runtime.progress import Progress
from ..decode import Unreadable
from ..pixels import PixelsError, sha256_file
from .leakage import Side
from .near_duplicates import BITS, DEAD_ZONE, Fingerprint, read_fingerprint

_HEAD: Final = {
    "medalign": "fingerprints",
    "version": 1,
    "bits": BITS,
    "dead_zone": DEAD_ZONE,
    "pillow": PIL.__version__,  # another one may decode a JPEG to other pixels
}

FEW = 64
"""Up to so many files are read in this process: starting others would take longer."""

_AHEAD = 16  # results under way for each worker

Result = TypeVar("Result")
_Use = tuple[Side, str]  # a manifest, and the path by which it names a file
_Users = dict[str, list[_Use]]


class FingerprintFileError(ValueError):
    """A file of fingerprints that is none, or was made in another way."""


class FingerprintFile:
    """Fingerprints by content; with a file, each is there as soon as it is known.

    Attributes:
        known: SHA-256 (hex) of an image file -> its fingerprint.
    """

    def __init__(self, file: BinaryIO | None = None) -> None:
        self.known: dict[str, Fingerprint] = {}
        self._file = file

    def add(self, content: str, fingerprint: Fingerprint) -> None:
        """Keep one more."""
        self.known[content] = fingerprint
        bits = (fingerprint.signs, fingerprint.definite)
        self._write([content, fingerprint.pixels, *(base64.b64encode(b).decode() for b in bits)])

    def _write(self, value: object) -> None:
        if self._file is not None:
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()


@contextmanager
def fingerprint_file(path: Path | None) -> Iterator[FingerprintFile]:
    """Open a file of fingerprints, or make it; None keeps them in memory alone.

    Raises:
        FingerprintFileError: the file is another one, of another version, or in use.
    """
    if path is None:
        yield FingerprintFile()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if not lock(file):
            raise FingerprintFileError(
                f"{path}: another run writes to it; wait for that run, or name another file"
            )
        file.seek(0)
        fingerprints = FingerprintFile(file)
        end = _read(path, file, fingerprints)
        file.truncate(end)
        file.seek(end)
        if not end:
            fingerprints._write(_HEAD)
        yield fingerprints


def _read(path: Path, file: BinaryIO, fingerprints: FingerprintFile) -> int:
    """Read what is there; return the end of the last whole line."""
    end = 0
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            value = json.loads(line)
            if number == 1 and value != _HEAD:
                raise ValueError("another head")
            if number > 1:
                content, fingerprint = _parse(value)
                fingerprints.known[content] = fingerprint
        except (ValueError, TypeError) as error:
            raise FingerprintFileError(
                f"{path}: line {number} is no line of a fingerprint file of this version; "
                "name a new file"
            ) from error
        end += len(line)
    if not end and path.stat().st_size:
        raise FingerprintFileError(f"{path}: is no file of fingerprints; name a new file")
    return end


def _parse(value: Any) -> tuple[str, Fingerprint]:
    content, pixels, *coded = value
    signs, definite = (base64.b64decode(part, validate=True) for part in coded)
    if not len(signs) == len(definite) == BITS // 8:
        raise binascii.Error("another length")
    return str(content), Fingerprint(str(pixels), signs, definite)


@dataclass(slots=True)
class Contents:
    """What the images of a comparison are.

    Attributes:
        fingerprints: SHA-256 (hex) of a file -> what is kept of its pixels.
        unreadable: (manifest, path, reason) of images that are not there or cannot be read.
    """

    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    unreadable: list[tuple[Path, str, str]] = field(default_factory=list)


def read_contents(
    sides: Sequence[Side], workers: int, progress: Progress, known: FingerprintFile
) -> Contents:
    """Fill `content` of every side, and read the fingerprint of every distinct content.

    Args:
        sides: manifests; those without a folder of images are left as they are.
        workers: processes that read.
        progress: shows how far it is.
        known: fingerprints of earlier runs; those of this one are added.

    Raises:
        WorkerDiedError: a worker process ended by itself.
    """
    contents = Contents()
    users: _Users = defaultdict(list)
    first: dict[str, Path] = {}
    for file, content, uses in _digests(sides, contents, workers, progress):
        first.setdefault(content, file)
        users[content] += uses
        for side, path in uses:
            side.content[path] = content
    new = {file: content for content, file in first.items() if content not in known.known}
    what = "decoding images"
    for file, fingerprint in read_each(read_fingerprint, list(new), workers, progress, what):
        if isinstance(fingerprint, Unreadable):
            contents.unreadable += _named(users[new[file]], fingerprint)
        else:
            known.add(new[file], fingerprint)
    contents.fingerprints = {name: known.known[name] for name in first if name in known.known}
    return contents


def _digests(
    sides: Sequence[Side], contents: Contents, workers: int, progress: Progress
) -> Iterator[tuple[Path, str, list[_Use]]]:
    """Yield every readable file, its digest, and what names it; the others go to `unreadable`."""
    users: dict[Path, list[_Use]] = defaultdict(list)
    for side in sides:
        there, absent = side.files(progress)
        contents.unreadable += [(side.manifest, path, reason) for path, reason in absent.items()]
        for path, file in there.items():
            users[file].append((side, path))
    for file, content in read_each(digest, list(users), workers, progress, "reading files"):
        if isinstance(content, Unreadable):
            contents.unreadable += _named(users[file], content)
        else:
            yield file, content, users[file]


def read_each(
    read: Callable[[Path], Result],
    files: Sequence[Path],
    workers: int,
    progress: Progress,
    what: str,
) -> Iterator[tuple[Path, Result]]:
    """Yield every file with what is read of it, in order, with worker processes and progress.

    Raises:
        WorkerDiedError: a worker process ended by itself.
    """
    count = workers if len(files) > FEW else 0
    pool = Workers(count, preload="medalign.pipeline.decode")
    with progress.stage(what, total=len(files)), pool:
        results = pool.map(read, files, ahead=_AHEAD * max(1, count))
        for file, result in zip(files, results, strict=True):
            progress.advance(1)
            yield file, result


def digest(file: Path) -> str | Unreadable:
    """Return the SHA-256 (hex) of a file, or why it cannot be read."""
    try:
        return sha256_file(file)
    except PixelsError as error:
        return Unreadable(error.reason)


def _named(users: Sequence[_Use], why: Unreadable) -> list[tuple[Path, str, str]]:
    return [(side.manifest, path, why.reason) for side, path in users]
