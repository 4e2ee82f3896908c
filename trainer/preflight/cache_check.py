"""Is a cache in order, and is it one of these very images?"""

from collections.abc import Sequence
from pathlib import Path

from ...pipeline.hygiene.finding import Check, Status, first
from ...pipeline.manifest import Record, even, image_paths, resolve_image
from ...pipeline.pixels import PixelsError, sha256_file
from ...teacher_cache.certificate import read_certificate
from ...teacher_cache.reader import TeacherCache
from ...teacher_cache.schema import TeacherCacheError
from ..data.dataset import OnMissing
from ..machine import counted


def opened(store: str) -> tuple[TeacherCache | None, Check]:
    """Open a cache as training would."""
    try:
        cache = TeacherCache.open(store)
    except TeacherCacheError as error:
        return None, Check("cache", "failed", str(error), "training takes sealed caches only")
    card = cache.card
    text = (
        f"{cache.store}: sealed, {counted(len(cache), 'row')} of {card.expert.name}, "
        f"{card.grid}, geometry {card.geometry}, mode {card.mode}"
    )
    return cache, Check("cache", "ok", text)


def certificate(cache: TeacherCache) -> Check:
    """Say how a cache was compared with its expert when it was sealed."""
    read = read_certificate(cache.certificate)
    if read is None:
        advice = "medalign cache seal recomputes rows with the expert"
        return Check("certificate", "warning", "no rows were recomputed", advice)
    return Check("certificate", "ok", read.summary())


def covered(records: Sequence[Record], cache: TeacherCache, on_missing: OnMissing) -> Check:
    """Count the images that have no row in the cache.

    Args:
        records: of the manifest.
        cache: that a run would train with.
        on_missing: `data.on_missing`, which decides whether `train` would refuse.
    """
    paths = image_paths(records)
    failed = {item.path: item.reason for item in cache.failures}
    lacking = [path for path in paths if path not in cache]
    if not lacking:
        return Check("cache rows", "ok", f"every one of {len(paths):,} images has a row")
    absent = set(lacking)
    dropped = sum(not absent.isdisjoint(record.images) for record in records)
    text = (
        f"{len(lacking):,} of {len(paths):,} images have no row, in "
        f"{counted(dropped, 'conversation')} of {len(records):,}"
    )
    advice = f"run `medalign cache build` on this manifest; data.on_missing is {on_missing}"
    details = [f"{path}: {failed.get(path, 'not in the cache')}" for path in lacking]
    refused = on_missing == "fail" or (on_missing == "drop" and dropped == len(records))
    status: Status = "failed" if refused else "warning"
    return Check("cache rows", status, text, advice, first(details))


def unchanged(paths: Sequence[str], images: Path, cache: TeacherCache, sample: int | None) -> Check:
    """Compare bytes of images that are there with those that the cache was built from."""
    chosen = even([path for path in paths if path in cache], sample)
    changed = []
    for path in chosen:
        try:
            digest = sha256_file(resolve_image(images, path))
        except PixelsError as error:
            changed.append(str(error))
            continue
        if digest != cache.sha256_of(cache.row_of(path)):
            changed.append(path)
    if changed:
        text = f"{len(changed):,} of {len(chosen):,} images changed since the cache was built"
        advice = "restore them, or build the cache again; training stops at such an image"
        return Check("image bytes", "failed", text, advice, first(changed))
    return Check("image bytes", "ok", f"{counted(len(chosen), 'image')} as the cache saw them")
