"""Which images are near-same: every hash of one side against every hash of the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .fingerprint import BITS, DEFINITE, Fingerprint

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Near:
    """What lies near one image.

    Attributes:
        places: which images of the other side, nearest first.
        distances: of each, in bits of `BITS`.
    """

    places: NDArray[np.intp]
    distances: NDArray[np.float64]


class Hashes:
    """The hashes of one side, laid out so that one pass compares an image with all of them."""

    def __init__(self, fingerprints: Sequence[Fingerprint]) -> None:
        self.signs = _words([each.signs for each in fingerprints])
        self.definite = _words([each.definite for each in fingerprints])

    def __len__(self) -> int:
        return len(self.signs[0])

    def near(self, other: Fingerprint, distance: float) -> Near:
        """Find the images within `distance` bits of another one."""
        signs, definite = _words([other.signs])[:, 0], _words([other.definite])[:, 0]
        # Scaling only makes distances larger: whoever differs too much in a part is out. The first
        # word is compared without gathering, since there nobody is out yet.
        count = _unlike(self.signs[0], self.definite[0], signs[0], definite[0])
        places = np.flatnonzero(count <= distance)
        differing = count[places].astype(np.int64)
        for word in range(1, len(signs)):
            here = self.signs[word, places], self.definite[word, places]
            differing = differing + _unlike(*here, signs[word], definite[word])
            kept = differing <= distance
            places, differing = places[kept], differing[kept]
        both = self.definite[:, places] & definite[:, None]
        common = np.bitwise_count(both).sum(axis=0, dtype=np.int64)
        found = BITS * differing / np.maximum(common, 1)
        kept = (common >= DEFINITE) & (found <= distance)
        order = np.argsort(found[kept], kind="stable")
        return Near(places[kept][order], found[kept][order])


def near_images(
    train: Sequence[Fingerprint], test: Sequence[Fingerprint], distance: float
) -> Iterator[Near]:
    """Yield, for every test image, the train images within `distance` bits of it."""
    hashes = Hashes(train)
    for each in test:
        yield hashes.near(each, distance)


def _unlike(
    signs: Words, definite: Words, sign: np.uint64, definite_too: np.uint64
) -> NDArray[np.uint8]:
    """Count the bits of one word in which many images and another one definitely differ."""
    found: NDArray[np.uint8] = np.bitwise_count((signs ^ sign) & definite & definite_too)
    return found


def _words(hashes: Sequence[bytes]) -> Words:
    """Return hashes as [BITS / 64, n], each word of all images in one row."""
    if not hashes:
        return np.zeros((BITS // 64, 0), np.uint64)
    flat = np.frombuffer(b"".join(hashes), np.uint64)
    return np.ascontiguousarray(flat.reshape(len(hashes), BITS // 64).T)
