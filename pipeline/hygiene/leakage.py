"""What a training manifest and a held-out one share: `medalign data leakage`."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ...runtime.progress import Progress
from ..datasets.formats import plain_words
from ..manifest import IMAGE_PLACEHOLDER, Record, checked_records, find_images
from .near_duplicates import Fingerprint, near_images

Kind = Literal["triplet", "file", "pixels", "near", "patient", "study"]

KINDS: Final[dict[Kind, str]] = {
    "triplet": "same image, question and answer",
    "file": "same image file",
    "pixels": "same pixels in another file",
    "near": "near-same image",
    "patient": "same patient",
    "study": "same study",
}
"""Every kind of leak, and what it is called."""

LISTED: Final = 100
"""How many records of each side one leak lists; the rest are counted."""

Numbers = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Member:
    """What is kept of one record; its text only as digests.

    Attributes:
        id, line: as in the manifest.
        images: paths, as in the manifest.
        pairs: a digest of each question with its answer, both normalised.
        patient, study: fields of these names as text; None where a record has none.
    """

    id: str
    line: int
    images: tuple[str, ...]
    pairs: tuple[bytes, ...]
    patient: str | None
    study: str | None


@dataclass(slots=True)
class Side:
    """A manifest and what its images are.

    Attributes:
        manifest: where it lies.
        root: folder of its images; None compares paths.
        members: its records, in order.
        content: image path -> SHA-256 (hex) of the file; lacks what cannot be read.
    """

    manifest: Path
    root: Path | None
    members: list[Member]
    content: dict[str, str] = field(default_factory=dict)

    @property
    def has_images(self) -> bool:
        """Whether any record names an image."""
        return any(member.images for member in self.members)

    def paths(self) -> list[str]:
        """Every image path once, in order."""
        return list(dict.fromkeys(path for member in self.members for path in member.images))

    def identity(self, path: str) -> str:
        """What an image is compared by: its content where that is known, else where it lies."""
        return self.content.get(path) or f"path {path if self.root is None else self.root / path}"

    def files(self, progress: Progress) -> tuple[dict[str, Path], dict[str, str]]:
        """Map paths to their files, and the other paths to why there is none."""
        root = self.root
        if root is None:
            return {}, {}
        paths = self.paths()
        with progress.stage("looking for files", total=len(paths)):
            there, absent = find_images(root, paths, progress.advance)
        reasons = {path: why.reason or f"is not in {root}" for path, why in absent.items()}
        return {path: root / path for path in there}, reasons


def read_side(manifest: Path, root: Path | None) -> Side:
    """Read a manifest; its texts are not kept.

    Raises:
        ManifestError: the manifest is broken.
    """
    return Side(manifest, root, [_member(record) for record in checked_records(manifest)])


def normalised(text: str) -> str:
    """Return the words of a question or answer, without its image placeholders."""
    return plain_words(text.replace(IMAGE_PLACEHOLDER, " "))


def _member(record: Record) -> Member:
    turns = [normalised(turn.text) for turn in record.conversations]
    pairs = tuple(_digest(*turns[k : k + 2]) for k in range(0, len(turns), 2))
    patient, study = (_named(record.fields, name) for name in ("patient", "study"))
    return Member(record.id, record.line, record.images, pairs, patient, study)


def _digest(*texts: str) -> bytes:
    return blake2b("\0".join(texts).encode(), digest_size=16).digest()


def _named(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None


@dataclass(frozen=True, slots=True)
class Sharers:
    """The records of one side that share something.

    Attributes:
        listed: the first `LISTED` of them; of near-same images, those of the nearest.
        count: how many there are.
    """

    listed: tuple[Member, ...]
    count: int

    @classmethod
    def of(cls, members: Sequence[Member]) -> "Sharers":
        """List the first of some distinct records."""
        return cls(tuple(members[:LISTED]), len(members))


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Hold one thing that two manifests share.

    Attributes:
        kind: how it is shared.
        what: the held-out image's path, or the patient or study; never a text.
        train, test: the records that share it.
        distance: of a near-same image, the smallest, in bits of 256.
    """

    kind: Kind
    what: str
    train: Sharers
    test: Sharers
    distance: float | None = None


@dataclass(slots=True)
class Leaks:
    """Hold everything that two manifests share.

    Attributes:
        all: every leak.
        train, test: the lines of all records that share something, by kind.
    """

    all: list[Leak] = field(default_factory=list)
    train: dict[Kind, set[int]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    test: dict[Kind, set[int]] = field(default_factory=lambda: {kind: set() for kind in KINDS})

    def of(self, kind: Kind) -> list[Leak]:
        """The leaks of one kind."""
        return [leak for leak in self.all if leak.kind == kind]

    def touch(self, kind: Kind, train: Iterable[Member], test: Iterable[Member]) -> None:
        """Remember records that share something."""
        self.train[kind].update(member.line for member in train)
        self.test[kind].update(member.line for member in test)


class ImageIndex:
    """The distinct images of a manifest, numbered, and the records that show each.

    Attributes:
        numbers: identity of an image -> its number.
        paths: the path of each, the first if there are several.
    """

    def __init__(self, side: Side) -> None:
        self.numbers: dict[str, int] = {}
        self.paths: list[str] = []
        self._members = side.members
        images: list[int] = []
        records: list[int] = []
        for record, member in enumerate(side.members):
            for path in dict.fromkeys(member.images):
                number = self.numbers.setdefault(side.identity(path), len(self.paths))
                if number == len(self.paths):
                    self.paths.append(path)
                images.append(number)
                records.append(record)
        # Sorted by image, so that the records of one image lie side by side.
        order = np.argsort(images, kind="stable")
        self._records = np.asarray(records, np.intp)[order]
        self._counts = np.bincount(np.asarray(images, np.intp), minlength=len(self.paths))
        self._starts = np.cumsum(self._counts) - self._counts
        # Where no record has two images, no record can be found twice.
        self._single = len(np.unique(self._records)) == len(self._records)

    def records(self, images: Numbers) -> Numbers:
        """Return the numbers of all records that show some images, each once, in their order."""
        counts = self._counts[images]
        before = np.cumsum(counts) - counts
        inside = np.arange(counts.sum()) - np.repeat(before, counts)
        records: Numbers = self._records[np.repeat(self._starts[images], counts) + inside]
        if self._single:
            return records
        first = np.unique(records, return_index=True)[1]
        return records[np.sort(first)]

    def members(self, records: Numbers) -> list[Member]:
        """Return records by their numbers."""
        return [self._members[number] for number in records]

    def sharers(self, records: Numbers) -> Sharers:
        """List the first of some records."""
        return Sharers(tuple(self.members(records[:LISTED])), len(records))

    def none(self) -> NDArray[np.bool_]:
        """Return a mark for each record, not set."""
        return np.zeros(len(self._members), np.bool_)


Fingerprints = Mapping[str, Fingerprint]
"""SHA-256 (hex) of an image file -> its fingerprint; lacks what cannot be decoded."""


class LeakedImages:
    """Compares the images of two manifests, and adds what they share to `leaks`."""

    def __init__(self, train: Side, test: Side, fingerprints: Fingerprints, leaks: Leaks) -> None:
        self._train, self._test = ImageIndex(train), ImageIndex(test)
        self._prints = fingerprints
        self._leaks = leaks

    def find(self, distance: float, progress: Progress) -> None:
        """List every held-out image once, by the strongest of file, pixels and near."""
        test = self._comparable(self._same())
        train = self._comparable(self._train.numbers)
        numbers = np.asarray([self._train.numbers[content] for content in train], np.intp)
        hit = self._train.none()
        nearest = near_images(list(train.values()), list(test.values()), distance)
        with progress.stage("comparing images", total=len(test)):
            for content, near in zip(test, nearest, strict=True):
                progress.advance(1)
                if len(near.numbers):
                    records = self._train.records(numbers[near.numbers])
                    hit[records] = True
                    far = round(float(near.distances[0]), 1)
                    self._add("near", content, self._train.sharers(records), far)
        self._leaks.touch("near", self._train.members(np.flatnonzero(hit)), ())

    def _same(self) -> list[str]:
        """Add images whose file or pixels are the same; return the others."""
        pixels: dict[str, list[int]] = defaultdict(list)
        for content, number in self._train.numbers.items():
            if fingerprint := self._prints.get(content):
                pixels[fingerprint.pixels].append(number)
        alike: dict[str, Sharers] = {}  # once for all images that look so: there may be many
        others = []
        for content in self._test.numbers:
            fingerprint = self._prints.get(content)
            if content in self._train.numbers:
                self._add("file", content, self._touched("file", [self._train.numbers[content]]))
            elif fingerprint and (look := fingerprint.pixels) in pixels:
                if look not in alike:
                    alike[look] = self._touched("pixels", pixels[look])
                self._add("pixels", content, alike[look])
            else:
                others.append(content)
        return others

    def _touched(self, kind: Kind, images: Sequence[int]) -> Sharers:
        """Note the training records that show some images, and list the first of them."""
        records = self._train.records(np.asarray(images, np.intp))
        self._leaks.touch(kind, self._train.members(records), ())
        return self._train.sharers(records)

    def _add(self, kind: Kind, content: str, train: Sharers, distance: float | None = None) -> None:
        number = self._test.numbers[content]
        records = self._test.records(np.asarray([number], np.intp))
        self._leaks.touch(kind, (), self._test.members(records))
        self._leaks.all.append(
            Leak(
                kind=kind,
                what=self._test.paths[number],
                train=train,
                test=self._test.sharers(records),
                distance=distance,
            )
        )

    def _comparable(self, contents: Iterable[str]) -> dict[str, Fingerprint]:
        """Of some contents, the fingerprints of those that can be compared by their hash."""
        known = {content: self._prints.get(content) for content in contents}
        return {content: print_ for content, print_ in known.items() if print_ and not print_.plain}


_Keyed = Iterable[tuple[Hashable, Member]]


def find_leaks(
    train: Side, test: Side, fingerprints: Fingerprints, distance: float, progress: Progress
) -> Leaks:
    """Compare two manifests.

    A held-out image is listed once, by the strongest of file, pixels and near.

    Args:
        train: with `content` filled where images are known.
        test: likewise.
        fingerprints: of all of their contents.
        distance: largest distance of near-same images, in bits of 256.
        progress: shows how many images are compared by their hash.
    """
    leaks = Leaks()
    _triplets(train, test, fingerprints, leaks)
    LeakedImages(train, test, fingerprints, leaks).find(distance, progress)
    _same(train, test, "patient", lambda member: member.patient, leaks)
    _same(train, test, "study", lambda member: member.study, leaks)
    return leaks


def _triplets(train: Side, test: Side, fingerprints: Fingerprints, leaks: Leaks) -> None:
    def look(content: str) -> str:
        fingerprint = fingerprints.get(content)
        return content if fingerprint is None else fingerprint.pixels

    def keys(side: Side) -> _Keyed:
        for member in side.members:
            images = tuple(look(side.identity(path)) for path in member.images)
            for pair in member.pairs:
                yield (images, pair), member

    for _, here, there in _shared(keys(train), keys(test)):
        _add(leaks, "triplet", ", ".join(there[0].images) or "no image", here, there)


def _same(
    train: Side, test: Side, kind: Kind, of: Callable[[Member], str | None], leaks: Leaks
) -> None:
    def keys(side: Side) -> _Keyed:
        return ((name, member) for member in side.members if (name := of(member)) is not None)

    for key, here, there in _shared(keys(train), keys(test)):
        _add(leaks, kind, str(key), here, there)


def _add(
    leaks: Leaks, kind: Kind, what: str, here: tuple[Member, ...], there: tuple[Member, ...]
) -> None:
    leaks.touch(kind, here, there)
    leaks.all.append(Leak(kind=kind, what=what, train=Sharers.of(here), test=Sharers.of(there)))


def _shared(
    train: _Keyed, test: _Keyed
) -> Iterator[tuple[Hashable, tuple[Member, ...], tuple[Member, ...]]]:
    """Yield every key of both sides, in the order of the test, with the members of each side."""
    there = defaultdict[Hashable, dict[Member, None]](dict)
    for key, member in test:
        there[key][member] = None
    here = defaultdict[Hashable, dict[Member, None]](dict)
    for key, member in train:
        if key in there:
            here[key][member] = None
    for key, members in there.items():
        if key in here:
            yield key, tuple(here[key]), tuple(members)
