"""Which images two manifests share: the same file, the same pixels, or nearly the same."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from ..progress import Progress
from .fingerprint import Fingerprint
from .leak import Kind, Leak, Leaks, Sharers
from .near import near_images
from .shown import Places, Shown
from .side import Side

Fingerprints = Mapping[str, Fingerprint]
"""SHA-256 (hex) of an image file -> its fingerprint; lacks what cannot be decoded."""


class LeakedImages:
    """Compares the images of two manifests, and adds what they share to `leaks`."""

    def __init__(self, train: Side, test: Side, fingerprints: Fingerprints, leaks: Leaks) -> None:
        self._here, self._there = Shown(train), Shown(test)
        self._prints = fingerprints
        self._leaks = leaks

    def find(self, distance: float, progress: Progress) -> None:
        """List every held-out image once, by the strongest of file, pixels and near."""
        rest = self._same()
        known, asked = self._comparable(self._here.places), self._comparable(rest)
        here = np.asarray([self._here.places[content] for content, _ in known], np.intp)
        hit = self._here.none()
        found = near_images([each for _, each in known], [each for _, each in asked], distance)
        with progress.stage("comparing images", total=len(asked)):
            for (content, _), near in zip(asked, found, strict=True):
                progress.advance(1)
                if len(near.places):
                    records = self._here.records(here[near.places])
                    hit[records] = True
                    far = round(float(near.distances[0]), 1)
                    self._add("near", content, self._here.sharers(records), far)
        self._leaks.touch("near", self._here.members(np.flatnonzero(hit)), ())

    def _same(self) -> list[str]:
        """Add images whose file or pixels are the same; return the others."""
        files: dict[str, Places] = {
            content: np.asarray([place], np.intp)
            for content, place in self._here.places.items()
            if content in self._there.places
        }
        pixels: dict[str, list[int]] = defaultdict(list)
        for content, place in self._here.places.items():
            if found := self._prints.get(content):
                pixels[found.pixels].append(place)
        alike: dict[str, Sharers] = {}  # once for all images that look so: there may be many
        rest = []
        for content in self._there.places:
            found = self._prints.get(content)
            if content in files:
                records = self._here.records(files[content])
                self._leaks.touch("file", self._here.members(records), ())
                self._add("file", content, self._here.sharers(records))
            elif found and found.pixels in pixels:
                if found.pixels not in alike:
                    records = self._here.records(np.asarray(pixels[found.pixels], np.intp))
                    self._leaks.touch("pixels", self._here.members(records), ())
                    alike[found.pixels] = self._here.sharers(records)
                self._add("pixels", content, alike[found.pixels])
            else:
                rest.append(content)
        return rest

    def _add(self, kind: Kind, content: str, train: Sharers, distance: float | None = None) -> None:
        place = self._there.places[content]
        records = self._there.records(np.asarray([place], np.intp))
        self._leaks.touch(kind, (), self._there.members(records))
        self._leaks.found.append(
            Leak(
                kind=kind,
                what=self._there.paths[place],
                train=train,
                test=self._there.sharers(records),
                distance=distance,
            )
        )

    def _comparable(self, contents: Iterable[str]) -> list[tuple[str, Fingerprint]]:
        """Of some contents, those that can be compared by their hash."""
        found = ((content, self._prints.get(content)) for content in contents)
        return [(content, each) for content, each in found if each and not each.plain]
