"""What is kept of an image's pixels to find it again: a digest, and a hash that copies share.

The perceptual hash: luminance averaged to 64 x 64 pixels, its orthonormal DCT, and the signs of
the 256 coefficients of lowest frequency without the mean. A coefficient within `DEAD_ZONE` grey
levels of 0 changes its sign with the next rounding (a symmetric image has hundreds of them), so it
is no bit: distances count the bits that are definite in both images, scaled to 256. An image with
fewer than `DEFINITE` definite bits is too plain to be compared, which keeps blank images apart.

Imports neither torch nor zarr: worker processes load this.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..decode import Unreadable
from ..pixels import PixelsError, read_image

BITS: Final = 256
"""Bits of a hash, and the unit of distances."""
DEFINITE: Final = 64
"""How many definite bits an image, and a pair of images, must have to be compared."""
DEAD_ZONE: Final = 4.0
"""Coefficients nearer to 0 are no bits; in grey levels, as the DCT is orthonormal."""

_SIDE, _ORDER = 64, 18
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Hold what is kept of one image.

    Attributes:
        pixels: SHA-256 (hex) of height, width and the decoded 8-bit RGB values.
        signs: `BITS` bits; 0 where not definite.
        definite: `BITS` bits, which of them mean something.
    """

    pixels: str
    signs: bytes
    definite: bytes

    @property
    def plain(self) -> bool:
        """Whether the image has too little in it to be compared by its hash."""
        return int.from_bytes(self.definite).bit_count() < DEFINITE


def fingerprint(rgb: NDArray[np.uint8]) -> Fingerprint:
    """Return the fingerprint of uint8 [H, W, 3]."""
    digest = hashlib.sha256(repr(rgb.shape).encode())
    digest.update(np.ascontiguousarray(rgb).data)
    coefficients = _low_frequencies(rgb)
    definite = np.abs(coefficients) > DEAD_ZONE
    signs = (coefficients > 0) & definite
    packed = (np.packbits(bits).tobytes() for bits in (signs, definite))
    return Fingerprint(digest.hexdigest(), *packed)


def read_fingerprint(path: Path) -> Fingerprint | Unreadable:
    """Return the fingerprint of an image file, or why it cannot be read."""
    try:
        return fingerprint(read_image(path).rgb)
    except PixelsError as error:
        return Unreadable(error.reason)


def _low_frequencies(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the `BITS` DCT coefficients of lowest frequency, float64 [BITS]."""
    grey = rgb.astype(np.float32) @ np.array(_LUMINANCE, np.float32)
    # A box averages what it shrinks, and would repeat pixels where it enlarges.
    box = min(grey.shape) >= 2 * _SIDE
    how = Image.Resampling.BOX if box else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(grey).resize((_SIDE, _SIDE), how), np.float64)
    basis, chosen = _basis()
    coefficients: NDArray[np.float64] = (basis @ small @ basis.T)[chosen]
    return coefficients


@cache
def _basis() -> tuple[NDArray[np.float64], tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the first rows of the orthonormal DCT-II (without scaling row 0), and the order."""
    points = 2 * np.arange(_SIDE) + 1
    rows = np.cos(np.pi * np.outer(np.arange(_ORDER), points) / (2 * _SIDE))
    rows *= np.sqrt(2 / _SIDE)
    rows[0] /= np.sqrt(2)
    down, right = np.divmod(np.arange(1, _ORDER**2), _ORDER)  # from 1: without the mean
    nearest = np.lexsort((right, down, down**2 + right**2))[:BITS]
    return rows, (down[nearest], right[nearest])


@dataclass(frozen=True, slots=True)
class Near:
    """What lies near one image.

    Attributes:
        numbers: which images of the other side, nearest first.
        distances: of each, in bits of `BITS`.
    """

    numbers: NDArray[np.intp]
    distances: NDArray[np.float64]


class Hashes:
    """The hashes of one side, laid out so that one pass compares an image with all of them."""

    def __init__(self, fingerprints: Sequence[Fingerprint]) -> None:
        self.signs = _words([one.signs for one in fingerprints])
        self.definite = _words([one.definite for one in fingerprints])

    def __len__(self) -> int:
        return len(self.signs[0])

    def near(self, other: Fingerprint, distance: float) -> Near:
        """Find the images within `distance` bits of another one."""
        signs, definite = _words([other.signs])[:, 0], _words([other.definite])[:, 0]
        # Scaling only makes distances larger: whoever differs too much in a part is out. The first
        # word is compared without gathering, since there nobody is out yet.
        count = _unlike(self.signs[0], self.definite[0], signs[0], definite[0])
        numbers = np.flatnonzero(count <= distance)
        differing = count[numbers].astype(np.int64)
        for word in range(1, len(signs)):
            words = self.signs[word, numbers], self.definite[word, numbers]
            differing = differing + _unlike(*words, signs[word], definite[word])
            near = differing <= distance
            numbers, differing = numbers[near], differing[near]
        both = self.definite[:, numbers] & definite[:, None]
        common = np.bitwise_count(both).sum(axis=0, dtype=np.int64)
        distances = BITS * differing / np.maximum(common, 1)
        near = (common >= DEFINITE) & (distances <= distance)
        order = np.argsort(distances[near], kind="stable")
        return Near(numbers[near][order], distances[near][order])


def near_images(
    train: Sequence[Fingerprint], test: Sequence[Fingerprint], distance: float
) -> Iterator[Near]:
    """Yield, for every test image, the train images within `distance` bits of it."""
    hashes = Hashes(train)
    for fingerprint in test:
        yield hashes.near(fingerprint, distance)


def _unlike(
    signs: Words, definite: Words, sign: np.uint64, definite_too: np.uint64
) -> NDArray[np.uint8]:
    """Count the bits of one word in which many images and another one definitely differ."""
    counts: NDArray[np.uint8] = np.bitwise_count((signs ^ sign) & definite & definite_too)
    return counts


def _words(hashes: Sequence[bytes]) -> Words:
    """Return hashes as [BITS / 64, n], each word of all images in one row."""
    if not hashes:
        return np.zeros((BITS // 64, 0), np.uint64)
    flat = np.frombuffer(b"".join(hashes), np.uint64)
    return np.ascontiguousarray(flat.reshape(len(hashes), BITS // 64).T)
