"""Which records of a manifest show which image, laid out to ask for many images at once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .leak import LISTED, Sharers
from .side import Member, Side

Places = NDArray[np.intp]


class Shown:
    """The distinct images of a manifest, by their place among them.

    Attributes:
        places: identity of an image -> its place.
        paths: the path of each, the first if there are several.
    """

    def __init__(self, side: Side) -> None:
        self.places: dict[str, int] = {}
        self.paths: list[str] = []
        self._members = side.members
        shown: list[int] = []
        showing: list[int] = []
        for number, member in enumerate(side.members):
            for path in dict.fromkeys(member.images):
                place = self.places.setdefault(side.identity(path), len(self.paths))
                if place == len(self.paths):
                    self.paths.append(path)
                shown.append(place)
                showing.append(number)
        order = np.argsort(shown, kind="stable")
        self._records = np.asarray(showing, np.intp)[order]
        self._counts = np.bincount(np.asarray(shown, np.intp), minlength=len(self.paths))
        self._starts = np.cumsum(self._counts) - self._counts
        # Where no record has two images, no record can be found twice.
        self._single = len(np.unique(self._records)) == len(self._records)

    def records(self, places: Places) -> Places:
        """Return the numbers of all records that show some images, each once, in their order."""
        counts = self._counts[places]
        before = np.cumsum(counts) - counts
        inside = np.arange(counts.sum()) - np.repeat(before, counts)
        found: Places = self._records[np.repeat(self._starts[places], counts) + inside]
        if self._single:
            return found
        first = np.unique(found, return_index=True)[1]
        return found[np.sort(first)]

    def members(self, records: Places | Sequence[int]) -> list[Member]:
        """Return records by their numbers."""
        return [self._members[number] for number in records]

    def sharers(self, records: Places) -> Sharers:
        """List the first of some records."""
        return Sharers(tuple(self.members(records[:LISTED])), len(records))

    def none(self) -> NDArray[np.bool_]:
        """Return a mark for each record, not set."""
        return np.zeros(len(self._members), np.bool_)
