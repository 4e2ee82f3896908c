"""Fingerprints of images on disk, so that an interrupted comparison goes on where it was.

JSON Lines: a first line that says how they were made, then one line an image. A last line that was
cut short is dropped.
"""

import base64
import binascii
import errno
import fcntl
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import PIL

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

    def add(self, content: str, found: Fingerprint) -> None:
        """Keep one more."""
        self.known[content] = found
        if self._file is not None:
            coded = [base64.b64encode(part).decode() for part in (found.signs, found.definite)]
            self._write([content, found.pixels, *coded])

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
        _take(path, file)
        file.seek(0)
        kept = FingerprintFile(file)
        end = _read(path, file, kept)
        file.truncate(end)
        file.seek(end)
        if not end:
            kept._write(_HEAD)
        yield kept


def _take(path: Path, file: BinaryIO) -> None:
    """Keep a second run out; the lock goes with the file, however this process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise FingerprintFileError(
            f"{path}: another run writes to it; wait for that run, or name another file"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            raise  # a file system without locks is used without one


def _read(path: Path, file: BinaryIO, kept: FingerprintFile) -> int:
    """Read what is there; return where the last whole line ends."""
    end = 0
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            value = json.loads(line)
            if number == 1 and value != _HEAD:
                raise ValueError("another head")
            if number > 1:
                content, found = _parse(value)
                kept.known[content] = found
        except (ValueError, TypeError) as error:
            raise FingerprintFileError(
                f"{path}: line {number} is none of a file of fingerprints of this version; "
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


FEW = 64
"""Up to so many files are read in this process: starting others would take longer."""

_AHEAD = 16  # results under way for each worker

Result = TypeVar("Result")
_Use = tuple[Side, str]  # a manifest, and the path by which it names a file
_Users = dict[str, list[_Use]]


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
    sides: Sequence[Side], workers: int, progress: Progress, kept: FingerprintFile
) -> Contents:
    """Fill `content` of every side, and read the fingerprint of every distinct content.

    Args:
        sides: manifests; those without a folder of images are left as they are.
        workers: processes that read.
        progress: is told.
        kept: fingerprints of earlier runs; those of this one are added.

    Raises:
        WorkerDiedError: a worker process ended by itself.
    """
    found = Contents()
    users: _Users = defaultdict(list)
    first: dict[str, Path] = {}
    for file, content, uses in _digests(sides, found, workers, progress):
        first.setdefault(content, file)
        users[content] += uses
        for side, path in uses:
            side.content[path] = content
    wanted = {file: content for content, file in first.items() if content not in kept.known}
    what = "decoding images"
    for file, print_ in read_each(read_fingerprint, list(wanted), workers, progress, what):
        if isinstance(print_, Unreadable):
            found.unreadable += _named(users[wanted[file]], print_)
        else:
            kept.add(wanted[file], print_)
    found.fingerprints = {each: kept.known[each] for each in first if each in kept.known}
    return found


def _digests(
    sides: Sequence[Side], found: Contents, workers: int, progress: Progress
) -> Iterator[tuple[Path, str, list[_Use]]]:
    """Yield every readable file, its digest, and what names it; the others go to `unreadable`."""
    users: dict[Path, list[_Use]] = defaultdict(list)
    for side in sides:
        there, absent = side.files(progress)
        found.unreadable += [(side.manifest, path, reason) for path, reason in absent.items()]
        for path, file in there.items():
            users[file].append((side, path))
    for file, content in read_each(digest, list(users), workers, progress, "reading files"):
        if isinstance(content, Unreadable):
            found.unreadable += _named(users[file], content)
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
    workers_here = Workers(count, preload="medalign.pipeline.decode")
    with progress.stage(what, total=len(files)), workers_here as pool:
        found = pool.map(read, files, ahead=_AHEAD * max(1, count))
        for file, result in zip(files, found, strict=True):
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
