"""Are manifest, images and cache in order, and is the cache one of these very images?"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from ...pipeline.image_files import even, find_images, image_paths
from ...pipeline.manifest import ManifestError, Record, checked_records, resolve_image
from ...pipeline.pixels import PixelsError, read_image, sha256_file
from ...teacher_cache.certificate import read_certificate
from ...teacher_cache.reader import TeacherCache
from ...teacher_cache.schema import TeacherCacheError
from ..amounts import counted
from .check import Check, Status, first

_DEEP: Final = ("I", "F")  # Pillow's modes of more than 8 bits start with these


def read_records(path: Path) -> tuple[list[Record], Check]:
    """Read the records that are in order, and name the lines that are not."""
    records: list[Record] = []
    try:
        for record in checked_records(path):
            records.append(record)  # noqa: PERF402 - kept when the end raises
    except ManifestError as error:
        details = first(error.problems, error.total)
        text = f"{path}: {counted(error.total, 'problem')}, {len(records):,} records are in order"
        return records, Check("manifest", "failed", text, "mend these lines", details)
    text_only = sum(not record.images for record in records)
    more = f", {text_only:,} text only" if text_only else ""
    images = counted(len(image_paths(records)), "image")
    text = f"{path}: {counted(len(records), 'record')} over {images}{more}"
    return records, Check("manifest", "ok", text)


def present(records: Sequence[Record], images: Path) -> tuple[list[str], Check]:
    """Find every image file; returns those that are there."""
    if not images.is_dir():
        return [], Check("image files", "failed", f"{images} is no folder", "give --images DIR")
    there, absent = find_images(images, image_paths(records))
    if absent:
        lost = list(absent.values())
        text = f"{len(lost):,} of {len(there) + len(lost):,} are not in {images}"
        return there, Check("image files", "failed", text, "is --images right?", first(lost))
    return there, Check("image files", "ok", f"all {len(there):,} are in {images}")


def decoded(paths: Sequence[str], images: Path, sample: int | None) -> Check:
    """Decode images that are there as training does, evenly spread ones or all."""
    chosen = even(paths, sample)
    broken, kinds = [], Counter[str]()
    for path in chosen:
        file = resolve_image(images, path)
        try:
            read_image(file)
        except PixelsError as error:
            broken.append(str(error))
        else:
            kinds[_kind(file)] += 1
    what = f"{len(chosen):,} of {counted(len(paths), 'image')}"
    notes = "".join(f", {n:,} {kind}" for kind, n in sorted(kinds.items()) if kind)
    if broken:
        advice = "mend or remove them; conversations with such an image are skipped"
        text = f"{len(broken):,} of {len(chosen):,} cannot be decoded"
        return Check("decoding", "failed", text, advice, first(broken))
    return Check("decoding", "ok", f"{what} decoded{notes}")


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
    found = read_certificate(cache.certificate)
    if found is None:
        advice = "medalign cache seal recomputes rows with the expert"
        return Check("certificate", "warning", "no rows were recomputed", advice)
    return Check("certificate", "ok", found.summary())


def covered(records: Sequence[Record], cache: TeacherCache) -> Check:
    """Count the images that have no row in the cache."""
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
    advice = "run `medalign cache build` on this manifest, or see data.on_missing"
    details = [f"{path}: {failed.get(path, 'not in the cache')}" for path in lacking]
    status: Status = "failed" if dropped == len(records) else "warning"
    return Check("cache rows", status, text, advice, first(details))


def unchanged(paths: Sequence[str], images: Path, cache: TeacherCache, sample: int | None) -> Check:
    """Compare bytes of images that are there with those that the cache was built from."""
    chosen = even([path for path in paths if path in cache], sample)
    changed = []
    for path in chosen:
        try:
            found = sha256_file(resolve_image(images, path))
        except PixelsError as error:
            changed.append(str(error))
            continue
        if found != cache.sha256_of(cache.row_of(path)):
            changed.append(path)
    if changed:
        text = f"{len(changed):,} of {len(chosen):,} images changed since the cache was built"
        advice = "restore them, or build the cache again; training stops at such an image"
        return Check("image bytes", "failed", text, advice, first(changed))
    return Check("image bytes", "ok", f"{counted(len(chosen), 'image')} as the cache saw them")


def _kind(file: Path) -> str:
    """What is worth a note about an image that can be decoded; an empty string if nothing."""
    with file.open("rb") as opened:
        head = opened.read(132)
    if head[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".dicom"):
        return "DICOM"
    with Image.open(file) as image:
        return "of more than 8 bits (stretched)" if image.mode.startswith(_DEEP) else ""
