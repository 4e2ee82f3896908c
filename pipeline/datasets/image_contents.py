"""Read every image of a comparison once: digests of files, then fingerprints of contents."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..pixels import PixelsError, sha256_file
from ..progress import Progress
from ..squares import Unreadable
from ..workers import WorkerDiedError, Workers
from .fingerprint import Fingerprint, read_fingerprint
from .fingerprint_file import FingerprintFile
from .side import Side

FEW = 64
"""Up to so many files are read in this process: starting others would take longer."""

_AHEAD = 16  # results under way for each worker
_DIED = (
    "a worker process died while it read images, most often because memory ran out; run the same "
    "command again, with fewer --workers if it dies again"
)

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
        there, absent = side.files()
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
    try:
        with progress.stage(what, total=len(files)), Workers(count) as pool:
            found = pool.map(read, files, ahead=_AHEAD * max(1, count))
            for file, result in zip(files, found, strict=True):
                progress.advance(1)
                yield file, result
    except WorkerDiedError:
        raise WorkerDiedError(_DIED) from None


def digest(file: Path) -> str | Unreadable:
    """Return the SHA-256 (hex) of a file, or why it cannot be read."""
    try:
        return sha256_file(file)
    except PixelsError as error:
        return Unreadable(error.reason)


def _named(users: Sequence[_Use], why: Unreadable) -> list[tuple[Path, str, str]]:
    return [(side.manifest, path, why.reason) for side, path in users]
