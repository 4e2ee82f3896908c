"""What is kept of an image's pixels to find it again: a digest, and a hash that copies share.

The perceptual hash: luminance averaged to 64 x 64 pixels, its orthonormal DCT, and the signs of
the 256 coefficients of lowest frequency without the mean. A coefficient within `DEAD_ZONE` grey
levels of 0 changes its sign with the next rounding (a symmetric image has hundreds of them), so it
is no bit: distances count the bits that are definite in both images, scaled to 256. An image with
fewer than `DEFINITE` definite bits is too plain to be compared, which keeps blank images apart.

Imports neither torch nor zarr: worker processes load this.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..pixels import PixelsError, read_image
from ..squares import Unreadable

BITS: Final = 256
"""Bits of a hash, and the unit of distances."""
DEFINITE: Final = 64
"""How many definite bits an image, and a pair of images, must have to be compared."""
DEAD_ZONE: Final = 4.0
"""Coefficients nearer to 0 are no bits; in grey levels, as the DCT is orthonormal."""

_SIDE, _ORDER = 64, 18
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's


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
    found: NDArray[np.float64] = (basis @ small @ basis.T)[chosen]
    return found


@cache
def _basis() -> tuple[NDArray[np.float64], tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the first rows of the orthonormal DCT-II (without scaling row 0), and the order."""
    places = np.arange(_SIDE)
    rows = np.cos(np.pi * np.outer(np.arange(_ORDER), 2 * places + 1) / (2 * _SIDE))
    rows *= np.sqrt(2 / _SIDE)
    rows[0] /= np.sqrt(2)
    down, right = np.divmod(np.arange(1, _ORDER**2), _ORDER)  # from 1: without the mean
    nearest = np.lexsort((right, down, down**2 + right**2))[:BITS]
    return rows, (down[nearest], right[nearest])
