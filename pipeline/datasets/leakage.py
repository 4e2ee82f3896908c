"""What a training manifest and a held-out one share: `medalign data leakage`."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .fingerprint import Fingerprint
from .near import near_images
from .side import Member, Side

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

NEAREST: Final = 100
"""How many near-same training images of one held-out image are listed; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Hold one thing that two manifests share.

    Attributes:
        kind: how it is shared.
        what: the held-out image's path, or the patient or study; never a text.
        train, test: the records that share it.
        distance: of a near-same image, the smallest, in bits of 256.
        more: near-same training images that are not listed.
    """

    kind: Kind
    what: str
    train: tuple[Member, ...]
    test: tuple[Member, ...]
    distance: float | None = None
    more: int = 0


Fingerprints = Mapping[str, Fingerprint]
"""SHA-256 (hex) of an image file -> its fingerprint; lacks what cannot be decoded."""


def find_leaks(train: Side, test: Side, fingerprints: Fingerprints, distance: float) -> list[Leak]:
    """Compare two manifests.

    A held-out image is listed once, by the strongest of file, pixels and near.

    Args:
        train: with `content` filled where images are known.
        test: likewise.
        fingerprints: of all of their contents.
        distance: largest distance of near-same images, in bits of 256.
    """
    return [
        *_triplets(train, test, fingerprints),
        *_images(train, test, fingerprints, distance),
        *_same(train, test, "patient", lambda member: member.patient),
        *_same(train, test, "study", lambda member: member.study),
    ]


def _triplets(train: Side, test: Side, fingerprints: Fingerprints) -> Iterator[Leak]:
    def shown(content: str) -> str:
        found = fingerprints.get(content)
        return content if found is None else found.pixels

    def keys(side: Side) -> Iterator[tuple[Hashable, Member]]:
        for member in side.members:
            images = tuple(shown(side.identity(path)) for path in member.images)
            for asked in member.asked:
                yield (images, asked), member

    for _, here, there in _shared(keys(train), keys(test)):
        what = ", ".join(there[0].images) or "no image"
        yield Leak(kind="triplet", what=what, train=here, test=there)


def _same(
    train: Side, test: Side, kind: Kind, of: Callable[[Member], str | None]
) -> Iterator[Leak]:
    def keys(side: Side) -> Iterator[tuple[Hashable, Member]]:
        return ((name, member) for member in side.members if (name := of(member)) is not None)

    for key, here, there in _shared(keys(train), keys(test)):
        yield Leak(kind=kind, what=str(key), train=here, test=there)


def _images(train: Side, test: Side, fingerprints: Fingerprints, distance: float) -> Iterator[Leak]:
    here, there = _by_content(train), _by_content(test)
    pixels = defaultdict[str, list[str]](list)
    for content in here:
        if found := fingerprints.get(content):
            pixels[found.pixels].append(content)
    rest = []
    for content, (path, members) in there.items():
        found = fingerprints.get(content)
        same = [content] if content in here else pixels.get(found.pixels, []) if found else []
        if same:
            kind: Kind = "file" if content in here else "pixels"
            yield Leak(kind=kind, what=path, train=_members(here, same), test=tuple(members))
        else:
            rest.append(content)
    yield from _near(here, there, rest, fingerprints, distance)


def _near(
    here: "_Contents",
    there: "_Contents",
    rest: Sequence[str],
    fingerprints: Fingerprints,
    distance: float,
) -> Iterator[Leak]:
    known, asked = _comparable(here, fingerprints), _comparable(rest, fingerprints)
    found = near_images([each for _, each in known], [each for _, each in asked], distance)
    for (content, _), near in zip(asked, found, strict=True):
        if not len(near.places):
            continue
        path, members = there[content]
        nearest = [known[place][0] for place in near.places[:NEAREST].tolist()]
        yield Leak(
            kind="near",
            what=path,
            train=_members(here, nearest),
            test=tuple(members),
            distance=round(float(near.distances[0]), 1),
            more=len(near.places) - len(nearest),
        )


def _comparable(
    contents: Iterable[str], fingerprints: Fingerprints
) -> list[tuple[str, Fingerprint]]:
    """Of some contents, those that can be compared by their hash."""
    found = ((content, fingerprints.get(content)) for content in contents)
    return [(content, each) for content, each in found if each and not each.plain]


_Contents = dict[str, tuple[str, list[Member]]]
"""Identity of an image -> its first path, and the records that show it."""


def _by_content(side: Side) -> _Contents:
    found: _Contents = {}
    for member in side.members:
        for path in dict.fromkeys(member.images):
            members = found.setdefault(side.identity(path), (path, []))[1]
            if not members or members[-1] is not member:
                members.append(member)
    return found


def _members(contents: _Contents, which: Sequence[str]) -> tuple[Member, ...]:
    return tuple(dict.fromkeys(member for each in which for member in contents[each][1]))


def _shared(
    train: Iterable[tuple[Hashable, Member]], test: Iterable[tuple[Hashable, Member]]
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
