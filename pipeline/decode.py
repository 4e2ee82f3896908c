"""From a manifest's image path to the square the expert sees: what a worker process does.

Imports neither torch nor zarr, so that a worker starts in half a second and stays small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..teacher_cache.schema import PatchGrid
from .geometry import GeometryName, apply_geometry, valid_patches
from .manifest import ManifestError, resolve_image
from .pixels import Alpha, PixelsError, read_image, sha256_file

_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How images of one cache become the expert's squares.

    Attributes:
        root: folder that the manifest's paths are relative to.
        geometry: from source pixels to the expert's square.
        size: side of that square in pixels.
        fill: colour of padding.
        alpha: colour behind transparent pixels.
        grid: the student's patch grid, for `valid`.
    """

    root: Path
    geometry: GeometryName
    size: int
    fill: tuple[int, int, int]
    alpha: Alpha
    grid: PatchGrid


@dataclass(frozen=True, slots=True)
class Source:
    """One row's image file: its manifest path, "" for none, and its SHA-256 (hex) in the plan."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Square:
    """An image as the expert sees it.

    Attributes:
        rgb: uint8 [S, S, 3].
        valid: bool [N], which patches of the student's grid are image.
        source_size: height and width of the image in pixels.
    """

    rgb: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    source_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why an image gives no row."""

    reason: str


def hash_files(root: Path, paths: Sequence[str]) -> list[str | Unreadable]:
    """Return the SHA-256 (hex) of each file, or why it cannot be read."""
    return [_hash_file(root, path) for path in paths]


def read_squares(view: View, sources: Sequence[Source]) -> list[Square | Unreadable]:
    """Return each image as the expert sees it, or why it cannot be read."""
    return [_read_square(view, source) for source in sources]


def _hash_file(root: Path, path: str) -> str | Unreadable:
    try:
        digest = sha256_file(resolve_image(root, path))
    except PixelsError as error:
        return Unreadable(error.reason)
    except ManifestError as error:
        return Unreadable(str(error))
    return digest if digest != _EMPTY else Unreadable("is empty (0 bytes)")


def _read_square(view: View, source: Source) -> Square | Unreadable:
    if not source.path:
        return Unreadable("no path leads to this image any more")
    try:
        image = read_image(resolve_image(view.root, source.path), alpha=view.alpha)
    except PixelsError as error:
        return Unreadable(error.reason)
    except ManifestError as error:
        return Unreadable(str(error))
    if image.sha256 != source.sha256:
        return Unreadable(
            f"changed since the cache was planned: its sha256 was {source.sha256[:12]}, "
            f"it is {image.sha256[:12]}"
        )
    height, width = image.rgb.shape[:2]
    valid = valid_patches(view.geometry, height, width, view.grid)
    rgb = apply_geometry(image.rgb, view.geometry, view.size, view.fill)
    return Square(rgb, valid, (height, width))
