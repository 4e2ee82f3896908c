"""Which image becomes which row: hash the manifest's images, or take an earlier build's plan."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..teacher_cache.schema import Failure, Plan
from ..teacher_cache.storage import Storage
from ..teacher_cache.writer import TeacherCacheWriter
from .manifest import ManifestError, read_manifest
from .pixels import PixelsError
from .progress import Progress
from .squares import Unreadable, hash_files
from .workers import Workers

_FILES_A_TASK = 16
_SHOWN = 3


class BuildError(ValueError):
    """A cache that cannot be built as asked."""


@dataclass(frozen=True, slots=True)
class ManifestImages:
    """What a manifest asks of a cache.

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
    records = read_manifest(manifest)
    paths = tuple(dict.fromkeys(path for record in records for path in record.images))
    if not paths:
        raise ManifestError(
            f"{manifest}: none of its {len(records)} records has an image, so there is nothing "
            "to cache"
        )
    text_only = sum(not record.images for record in records)
    return ManifestImages(len(records), text_only, paths)


def stored_plan(store: Path | str | Storage, paths: Sequence[str]) -> Plan | None:
    """Return the plan that an earlier build left at `store`, if it is of these images.

    Raises:
        BuildError: the store holds something else, or was planned for other images.
        TeacherCacheError: the plan is damaged.
    """
    plan = TeacherCacheWriter.load_plan(store)
    if plan is None:
        return None
    planned = {*plan.paths, *(failure.path for failure in plan.failures)}
    added, gone = [path for path in paths if path not in planned], planned - set(paths)
    if added or gone:
        examples = ", ".join([*added, *sorted(gone)][:_SHOWN])
        raise BuildError(
            f"{store} was begun for another list of images: {len(added)} are new in this "
            f"manifest, {len(gone)} are gone (for example {examples}); give another --out, or "
            "the manifest that it was begun with"
        )
    return plan


def make_plan(
    root: Path, paths: Sequence[str], workers: Workers, progress: Progress, *, strict: bool
) -> Plan:
    """Hash every image and give each distinct content a row, in order of first appearance.

    Args:
        root: folder that the paths are relative to.
        paths: distinct manifest paths.
        workers: processes that read the files.
        progress: told of every file.
        strict: stop at the first file that cannot be read.

    Raises:
        PixelsError: with `strict`, a file cannot be read.
        BuildError: not one of them can be read.
    """
    rows: dict[str, int] = {}
    path_rows: dict[str, int] = {}
    failures: list[Failure] = []
    tasks = [paths[i : i + _FILES_A_TASK] for i in range(0, len(paths), _FILES_A_TASK)]
    results = workers.map(partial(hash_files, root), tasks, ahead=4 * max(1, workers.count))
    with progress.stage("hashing", total=len(paths)):
        found = itertools.chain.from_iterable(results)
        for path, digest in zip(paths, found, strict=True):
            if not isinstance(digest, Unreadable):
                path_rows[path] = rows.setdefault(digest, len(rows))
            elif strict:
                raise PixelsError(path, digest.reason)
            else:
                failures.append(Failure(path, digest.reason))
            progress.advance(1)
    if not rows:
        first = f"{failures[0].path}: {failures[0].reason}"
        raise BuildError(
            f"none of the {len(paths)} images can be read under {root} (the first: {first}); "
            "is --images the folder that the manifest's paths are relative to"
        )
    return Plan(content=tuple(rows), paths=path_rows, failures=tuple(failures))
