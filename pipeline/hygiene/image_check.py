"""Everything in a manifest's images and masks that would fail later, and `medalign data check`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from ...runtime.progress import Progress
from ..decode import Unreadable
from ..manifest import Record, even, find_images, shorten
from ..pixels import PixelsError, read_image
from .fingerprints import read_each
from .manifest_check import Findings, checked_by_rules

TINY: Final = 32
"""Images with a side of fewer pixels are called tiny: a vision tower sees 224 or more."""

_Who = tuple[int, str]
"""Line and id of a record: its texts would fill the memory."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of a decoded image: height and width, and whether it is of one colour."""

    size: tuple[int, int]
    constant: bool

    def __str__(self) -> str:
        """Return the size in words."""
        return "{} x {} pixels".format(*self.size)


@dataclass(slots=True)
class NamedFiles:
    """The files that records name.

    Attributes:
        images, masks: path -> records that name it.
        masked: (image, mask) -> records that pair them.
    """

    images: dict[str, list[_Who]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[str, list[_Who]] = field(default_factory=lambda: defaultdict(list))
    masked: dict[tuple[str, str], list[_Who]] = field(default_factory=lambda: defaultdict(list))

    def take(self, record: Record) -> None:
        """Note the files of one more record."""
        who = record.line, record.id
        for path in dict.fromkeys(record.images):
            self.images[path].append(who)
        mask = record.fields.get("mask")
        if isinstance(mask, str):
            self.masks[mask].append(who)
            if record.images:
                self.masked[record.images[0], mask].append(who)


class ImageRules:
    """Looks at the files that records name.

    Args:
        root: folder of images and masks.
        named: the files.
        findings: what is wrong is added here.
        progress: shows how far it is.
    """

    def __init__(
        self, root: Path, named: NamedFiles, findings: Findings, progress: Progress
    ) -> None:
        self._root, self._named = root, named
        self._findings, self._progress = findings, progress
        self._masks: list[str] = []

    def find(self) -> list[str]:
        """Find every file; returns the images that are there."""
        named, progress = self._named, self._progress
        with progress.stage("looking for files", total=len(named.images) + len(named.masks)):
            images, absent = find_images(self._root, named.images, progress.advance)
            self._masks, absent_masks = find_images(self._root, named.masks, progress.advance)
        for path, why in absent.items():
            kind = "image-outside" if why.outside else "image-missing"
            self._add(kind, named.images[path], str(why))
        for path, why in absent_masks.items():
            self._add("mask-missing", named.masks[path], str(why))
        return images

    def decode(self, images: Sequence[str], count: int | None, workers: int) -> list[str]:
        """Decode images, evenly spread, with their masks; returns those that can be decoded.

        Args:
            images: that are there.
            count: of the images; None for all of them, and all masks.
            workers: processes that decode.

        Raises:
            WorkerDiedError: a worker process ended by itself.
        """
        chosen = even(images, count)
        decoded = set(chosen)
        paired = {mask for image, mask in self._named.masked if image in decoded}
        masks = [mask for mask in self._masks if mask in paired or count is None]
        files = {self._root / path: path for path in [*chosen, *masks]}
        looks = {
            files[file]: look
            for file, look in read_each(
                look_at, list(files), workers, self._progress, "decoding images"
            )
        }
        self._findings.decoded = len(chosen)
        for path, look in looks.items():
            self._judge(path, look)
        for (image, mask), who in self._named.masked.items():
            pair = looks.get(image), looks.get(mask)
            if (
                isinstance(pair[0], Look)
                and isinstance(pair[1], Look)
                and pair[0].size != pair[1].size
            ):
                text = f"{shorten(mask)}: {pair[1]}, the image has {pair[0]}"
                self._add("mask-size", who, text)
        return [path for path in chosen if isinstance(looks[path], Look)]

    def _judge(self, path: str, look: Look | Unreadable) -> None:
        images, masks = self._named.images.get(path, []), self._named.masks.get(path, [])
        if isinstance(look, Unreadable):
            self._add("image-unreadable", images, f"{shorten(path)}: {look.reason}")
            self._add("mask-unreadable", masks, f"{shorten(path)}: {look.reason}")
            return
        if min(look.size) < TINY:
            self._add("image-tiny", images, f"{shorten(path)}: {look}")
        if look.constant:
            self._add("image-constant", images, shorten(path))

    def _add(self, kind: str, records: Iterable[_Who], text: str) -> None:
        for line, id_ in records:
            self._findings.add(kind, line, id_, text)


def look_at(file: Path) -> Look | Unreadable:
    """Decode an image as every command does."""
    try:
        rgb = read_image(file).rgb
    except PixelsError as error:
        return Unreadable(error.reason)
    return Look(rgb.shape[:2], bool(np.all(rgb == rgb[0, 0])))


def check_data(
    manifest: Path, root: Path | None, *, decode: int | None, workers: int, progress: Progress
) -> Findings:
    """Look at every record, and at the files that it names.

    Args:
        manifest: the manifest.
        root: folder of its images and masks; None looks at no file.
        decode: how many images to decode, evenly spread, with their masks; None for all.
        workers: processes that decode.
        progress: shows how far it is.

    Raises:
        ManifestError: the file is no manifest at all.
        WorkerDiedError: a worker process ended by itself.
    """
    findings, named = Findings(), NamedFiles()
    for record in checked_by_rules(manifest, findings):
        named.take(record)
    findings.images = len(named.images)
    if root is not None:
        rules = ImageRules(root, named, findings, progress)
        rules.decode(rules.find(), decode, workers)
    return findings
