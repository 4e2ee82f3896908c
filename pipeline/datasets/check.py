"""Everything in a manifest and its images that would fail later: `medalign data check`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from ..image_files import even, find_images
from ..manifest import scan_records
from ..pixels import PixelsError, read_image
from ..progress import Progress
from ..records import Record
from ..squares import Unreadable
from .findings import Findings
from .image_contents import read_each
from .record_rules import RecordRules

TINY: Final = 32
"""Images with a side of fewer pixels are called tiny: a vision tower sees 224 or more."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be known of a decoded image: height and width, and whether it is of one colour."""

    size: tuple[int, int]
    constant: bool


@dataclass(slots=True)
class _Named:
    """The files that records name: path -> (line, id) of each record.

    Attributes:
        images: images.
        masks: masks.
        masked: (image, mask) -> records that say so.
    """

    images: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    masked: dict[tuple[str, str], list[tuple[int, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )


def check_manifest(
    manifest: Path, root: Path | None, *, decode: int | None, workers: int, progress: Progress
) -> Findings:
    """Look at every record, and at the files that it names.

    Args:
        manifest: the manifest.
        root: folder of its images and masks; None looks at no file.
        decode: how many images to decode, evenly spread, with their masks; None for all.
        workers: processes that decode.
        progress: is told.

    Raises:
        ManifestError: the file is no manifest at all.
        WorkerDiedError: a worker process ended by itself.
    """
    findings, named = Findings(), _Named()
    rules = RecordRules(findings)
    for where, line, found in scan_records(manifest):
        findings.unit = where.partition(" ")[0]
        if isinstance(found, Record):
            findings.records += 1
            rules.look(found)
            _take_names(found, named)
        else:
            for problem in found:
                findings.add("manifest", line, None, problem)
    findings.images = len(named.images)
    if root is not None:
        _files(root, named, findings, decode, workers, progress)
    return findings


def look_at(file: Path) -> Look | Unreadable:
    """Decode an image as every command does."""
    try:
        rgb = read_image(file).rgb
    except PixelsError as error:
        return Unreadable(error.reason)
    return Look(rgb.shape[:2], bool(np.all(rgb == rgb[0, 0])))


def _take_names(record: Record, named: _Named) -> None:
    who = record.line, record.id
    for path in dict.fromkeys(record.images):
        named.images[path].append(who)
    mask = record.fields.get("mask")
    if isinstance(mask, str):
        named.masks[mask].append(who)
        if record.images:
            named.masked[record.images[0], mask].append(who)


def _files(
    root: Path,
    named: _Named,
    findings: Findings,
    decode: int | None,
    workers: int,
    progress: Progress,
) -> None:
    there, absent = find_images(root, named.images)
    for path, text in absent.items():
        kind = "image-missing" if text == path else "image-outside"
        _add_all(findings, kind, named.images[path], text)
    masks, lost = find_images(root, named.masks)
    for path, text in lost.items():
        _add_all(findings, "mask-missing", named.masks[path], text)
    chosen = even(there, decode)
    shown = set(chosen)
    of_chosen = {mask for image, mask in named.masked if image in shown}
    paths = [*chosen, *(mask for mask in masks if mask in of_chosen or decode is None)]
    files = {root / path: path for path in paths}
    looks = {
        files[file]: look
        for file, look in read_each(look_at, list(files), workers, progress, "decoding images")
    }
    findings.decoded = len(chosen)
    _tell(named, looks, findings)
    _compare_sizes(named.masked, looks, findings)


def _tell(named: _Named, looks: Mapping[str, Look | Unreadable], findings: Findings) -> None:
    for path, look in looks.items():
        images, masks = named.images.get(path, []), named.masks.get(path, [])
        if isinstance(look, Unreadable):
            _add_all(findings, "image-unreadable", images, f"{path}: {look.reason}")
            _add_all(findings, "mask-unreadable", masks, f"{path}: {look.reason}")
            continue
        height, width = look.size
        if min(look.size) < TINY:
            _add_all(findings, "image-tiny", images, f"{path}: {height} x {width} pixels")
        if look.constant:
            _add_all(findings, "image-constant", images, path)


def _compare_sizes(
    masked: Mapping[tuple[str, str], Sequence[tuple[int, str]]],
    looks: Mapping[str, Look | Unreadable],
    findings: Findings,
) -> None:
    for (image, mask), who in masked.items():
        sizes = [look.size for look in map(looks.get, (image, mask)) if isinstance(look, Look)]
        if len(sizes) == 2 and sizes[0] != sizes[1]:
            shown, other = (f"{height} x {width}" for height, width in sizes)
            _add_all(findings, "mask-size", who, f"{mask}: {other} pixels, the image has {shown}")


def _add_all(findings: Findings, kind: str, who: Sequence[tuple[int, str]], text: str) -> None:
    for line, id_ in who:
        findings.add(kind, line, id_, text)
