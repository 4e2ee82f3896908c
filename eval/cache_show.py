"""Show one row of a teacher cache: find it and its image by a key, and draw both."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..pipeline.geometry import GeometryName, apply_geometry
from ..pipeline.manifest import ManifestError, resolve_image
from ..pipeline.pixels import Alpha, PixelsError, read_image
from ..teacher_cache.origin import load_origin
from ..teacher_cache.reader import TeacherCache, TeacherRow
from ..teacher_cache.schema import PatchGrid
from .row_figure import draw_row


class CacheShowError(ValueError):
    """A row that cannot be shown as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What was drawn.

    Attributes:
        row: its number.
        path: a manifest path of its image, empty where it has none any more.
        patch: row and column of the chosen patch.
        image: whether the image itself is in the picture.
        remark: why not, else empty.
    """

    row: int
    path: str
    patch: tuple[int, int]
    image: bool
    remark: str


def show(
    cache: TeacherCache,
    key: str,
    out: Path,
    *,
    images: Path | None = None,
    patch: tuple[int, int] | None = None,
) -> Shown:
    """Draw what a cache holds of one image, as a PNG.

    Args:
        cache: sealed or still building.
        key: manifest path, SHA-256 of the image file, or row number.
        out: PNG to write; missing folders are made.
        images: folder of the images; None for where the last build found them. Without the image
            the maps are drawn by themselves.
        patch: row and column, from 0 at the top left, of the patch that the others are compared
            with; None for the one that most attention goes to.

    Raises:
        CacheShowError: no such row or patch.
        TeacherCacheError: the row holds no data, or is damaged.
    """
    row = find_row(cache, key)
    teacher = cache[row]
    paths = sorted(cache.paths_of([row])[row], key=lambda path: path != key)  # as asked for
    square, remark = _square(cache, row, paths, images)
    grid = cache.card.grid
    chosen = _chosen(teacher, patch, grid)
    draw_row(
        teacher,
        grid,
        chosen,
        out,
        square=square,
        title=paths[0] if paths else f"sha256 {cache.sha256_of(row)}",
        facts=_facts(cache, row, teacher),
    )
    return Shown(
        row=row,
        path=paths[0] if paths else "",
        patch=divmod(chosen, grid.cols),
        image=square is not None,
        remark=remark,
    )


def parse_patch(text: str) -> tuple[int, int]:
    """Read `R,C`, both from 0.

    Raises:
        CacheShowError: it is not that.
    """
    row, comma, col = text.partition(",")
    if not (comma and row.strip().isdecimal() and col.strip().isdecimal()):
        raise CacheShowError(f"a patch is written R,C, as in 3,12, got {text!r}")
    return int(row), int(col)


def find_row(cache: TeacherCache, key: str) -> int:
    """Return the row of a manifest path, a SHA-256 in hex, or a row number written out.

    Raises:
        CacheShowError: there is no such row.
        TeacherCacheError: the image could not be read at all.
    """
    for each in (key, int(key)) if key.isdecimal() and len(key) < 10 else (key,):
        try:
            return cache.row_of(each)
        except KeyError:
            continue
    raise CacheShowError(
        f"{key!r} is no path, sha256 or row of {cache.store}, which has {len(cache)} rows"
    )


def _square(
    cache: TeacherCache, row: int, paths: list[str], images: Path | None
) -> tuple[NDArray[np.uint8] | None, str]:
    """Return the image as the expert saw it, [S, S, 3], or None and why."""
    if images is None:
        origin = load_origin(cache.store)
        if origin is None:
            return None, "where the images are is not known; give --images DIR"
        images = Path(origin.images)
    card = cache.card
    remark = "no path of the manifest leads to this row any more"
    for path in paths:
        try:
            image = read_image(resolve_image(images, path), alpha=cast(Alpha, card.alpha))
        except (ManifestError, PixelsError) as error:
            remark = f"{images}: {error}"
            continue
        if image.sha256 == cache.sha256_of(row):
            geometry = cast(GeometryName, card.geometry)
            return apply_geometry(image.rgb, geometry, card.expert.image_size, card.fill), ""
        remark = f"{images}: {path} is another image than the one that the row was made from"
    return None, remark


def _chosen(teacher: TeacherRow, patch: tuple[int, int] | None, grid: PatchGrid) -> int:
    if patch is None:
        return int(np.argmax(np.where(teacher.valid, teacher.attention, -1)))
    row, col = patch
    if row >= grid.rows or col >= grid.cols:
        raise CacheShowError(
            f"patch {row},{col} is outside a grid {grid}: rows 0 to {grid.rows - 1}, columns 0 to "
            f"{grid.cols - 1}"
        )
    return row * grid.cols + col


def _facts(cache: TeacherCache, row: int, teacher: TeacherRow) -> str:
    card = cache.card
    height, width = teacher.source_size
    return (
        f"row {row}, {width} x {height} px, expert {card.expert.name}, grid {card.grid}, "
        f"geometry {card.geometry}, stored as {card.codec}"
    )
