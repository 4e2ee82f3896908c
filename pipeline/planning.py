"""Which image becomes which row: hash the images that a cache does not know yet."""

import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..runtime.processes import Workers
from ..runtime.progress import Progress
from ..teacher_cache.audit import list_known_failures
from ..teacher_cache.generations import PlanChain
from ..teacher_cache.schema import Failure, Plan
from ..teacher_cache.storage.local import Storage
from .decode import Unreadable, hash_files
from .manifest import ManifestError, checked_records
from .pixels import PixelsError

_FILES_A_TASK = 16  # hashing a small file takes less time than passing it to a worker


class BuildError(ValueError):
    """A cache that cannot be built with these options, images or folders."""


@dataclass(frozen=True, slots=True)
class ManifestImages:
    """The images that a manifest names.

    Attributes:
        records: number of records.
        text_only: how many of them have no image; they need no row.
        paths: distinct image paths in order of first appearance.
    """

    records: int
    text_only: int
    paths: tuple[str, ...]


def list_images(manifest: Path) -> ManifestImages:
    """Read which images a manifest names.

    Raises:
        ManifestError: the manifest is broken, or no record has an image.
    """
    paths: dict[str, None] = {}
    records = text_only = 0
    for record in checked_records(manifest):  # never held together: there may be millions
        records += 1
        text_only += not record.images
        paths |= dict.fromkeys(record.images)
    if not paths:
        raise ManifestError(
            f"{manifest}: none of its {records} records has an image, so there is nothing to cache"
        )
    return ManifestImages(records, text_only, tuple(paths))


def to_hash(store: Storage, known: PlanChain, paths: Sequence[str], *, rehash: bool) -> list[str]:
    """Return the paths whose files must be read before the store can take them.

    These are images that the store does not know, and those that failed, which may have been
    restored since.

    Args:
        store: the cache.
        known: its plan up to now.
        paths: distinct manifest paths.
        rehash: read known images too, in case their bytes changed.
    """
    if rehash:
        return list(paths)
    failed = {failure.path for failure in list_known_failures(store)}
    return [path for path in paths if path not in known.paths or path in failed]


def make_plan(
    root: Path,
    paths: Sequence[str],
    workers: Workers,
    progress: Progress,
    *,
    strict: bool,
    known: Container[str] = (),
) -> Plan:
    """Hash images and plan a row for each distinct content, in order of first appearance.

    Args:
        root: folder that the paths are relative to.
        paths: distinct manifest paths.
        workers: processes that read the files.
        progress: advances with every file.
        strict: stop at the first file that cannot be read.
        known: paths that have a row already, which stays if their file cannot be read now.

    Raises:
        PixelsError: with `strict`, a file cannot be read.
    """
    if not paths:
        return Plan(content=(), paths={})
    rows: dict[str, int] = {}
    path_rows: dict[str, int] = {}
    failures: list[Failure] = []
    tasks = [paths[i : i + _FILES_A_TASK] for i in range(0, len(paths), _FILES_A_TASK)]
    results = workers.map(partial(hash_files, root), tasks, ahead=4 * max(1, workers.count))
    with progress.stage("hashing", total=len(paths)):
        digests = itertools.chain.from_iterable(results)
        for path, digest in zip(paths, digests, strict=True):
            if not isinstance(digest, Unreadable):
                path_rows[path] = rows.setdefault(digest, len(rows))
            elif strict:
                raise PixelsError(path, digest.reason)
            else:
                failures.append(Failure(path, digest.reason))
            progress.advance(1)
    if gone := [failure.path for failure in failures if failure.path in known]:
        progress.say(f"{len(gone)} known images cannot be read now, {gone[0]} first; rows stay")
    lost = tuple(failure for failure in failures if failure.path not in known)
    return Plan(content=tuple(rows), paths=path_rows, failures=lost)


def refuse_empty(root: Path, plan: Plan) -> None:
    """Refuse to begin a cache with no image that can be read.

    Raises:
        BuildError: says how many were tried, and why the first failed.
    """
    if not plan.content:
        first = f"{plan.failures[0].path}: {plan.failures[0].reason}"
        raise BuildError(
            f"none of the {len(plan.failures)} images can be read under {root} (the first: "
            f"{first}); is --images the folder that the manifest's paths are relative to?"
        )
