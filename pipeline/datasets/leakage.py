"""What a training manifest and a held-out one share: `medalign data leakage`."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator

from ..progress import Progress
from .leak import Kind, Leak, Leaks, Sharers
from .leaked_images import Fingerprints, LeakedImages
from .side import Member, Side

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
        progress: is told of the images that are compared by their hash.
    """
    leaks = Leaks()
    _triplets(train, test, fingerprints, leaks)
    LeakedImages(train, test, fingerprints, leaks).find(distance, progress)
    _same(train, test, "patient", lambda member: member.patient, leaks)
    _same(train, test, "study", lambda member: member.study, leaks)
    return leaks


def _triplets(train: Side, test: Side, fingerprints: Fingerprints, leaks: Leaks) -> None:
    def shown(content: str) -> str:
        found = fingerprints.get(content)
        return content if found is None else found.pixels

    def keys(side: Side) -> _Keyed:
        for member in side.members:
            images = tuple(shown(side.identity(path)) for path in member.images)
            for asked in member.asked:
                yield (images, asked), member

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
    found = Leak(kind=kind, what=what, train=Sharers.of(here), test=Sharers.of(there))
    leaks.found.append(found)


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
