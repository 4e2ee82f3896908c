"""Show one row of a teacher cache: find it and its image by a key, and draw both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...pipeline.geometry import GeometryName, apply_geometry
from ...pipeline.manifest import ManifestError, resolve_image
from ...pipeline.pixels import Alpha, PixelsError, read_image
from ...teacher_cache.origin import load_origin
from ...teacher_cache.reader import TeacherCache, TeacherRow
from ...teacher_cache.schema import PatchGrid
from .patches import (
    GREY,
    colour_bar,
    draw_heat,
    draw_picture,
    frame_patch,
    hatch_padding,
    in_grey,
    save_figure,
    tint_patches,
    top_of_scale,
)

_DPI = 88  # four panels for a screen, not for print
_BLANK = np.full((2, 2, 3), 150, np.uint8)


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
    paths = sorted(cache.paths_of([row])[row], key=lambda path: path != key)  # the user's first
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
    for name in (key, int(key)) if key.isdecimal() and len(key) < 10 else (key,):
        try:
            return cache.row_of(name)
        except KeyError:
            continue
    raise CacheShowError(
        f"{key!r} is no path, sha256 or row of {cache.store}, which has {len(cache)} rows"
    )


def draw_row(
    teacher: TeacherRow,
    grid: PatchGrid,
    chosen: int,
    path: Path,
    *,
    square: NDArray[np.uint8] | None,
    title: str,
    facts: str,
) -> None:
    """Draw image, attention, similarity to one patch, and padding side by side.

    Attention is divided by its mean over image patches, so 1 is what even attention would give a
    patch; its colours end at the 99th percentile. Similarity is the chosen patch's row of the
    Gram; its colours reach from the least to the most similar other patch.

    Args:
        teacher: the row.
        grid: rows and columns of its patches.
        chosen: number of the patch that the others are compared with.
        path: PNG to write; missing folders are made.
        square: the image as the expert saw it, uint8 [S, S, 3]; None draws the maps without it.
        title: first line above the panels.
        facts: line below them.
    """
    inside, name = teacher.valid, "patch {},{}".format(*divmod(chosen, grid.cols))
    picture = _BLANK if square is None else square
    figure, panels, below = _canvas()
    figure.suptitle(title, x=0.012, ha="left", fontsize=11, parse_math=False)
    figure.supxlabel(facts, x=0.012, ha="left", fontsize=8, color=GREY, parse_math=False)
    draw_picture(panels[0], picture, "image" if square is not None else "image: not there")
    draw_picture(panels[1], in_grey(picture), "attention of [cls]")
    draw_picture(panels[2], in_grey(picture), f"similarity to {name}")
    draw_picture(panels[3], _BLANK, "patches that count")

    attention = teacher.attention / max(float(teacher.attention[inside].mean()), 1e-30)
    _draw_map(figure, panels[1], below[1], attention, inside, grid, label="times even attention")
    gram = teacher.gram()[chosen]
    # The chosen patch has similarity 1 to itself, which would use up the colours.
    gram[chosen] = np.delete(gram, chosen)[np.delete(inside, chosen)].max(initial=-1)
    _draw_map(figure, panels[2], below[2], gram, inside, grid, label="cosine similarity")
    tint_patches(panels[3], inside, grid)
    for axes in panels:
        hatch_padding(axes, inside, grid)
    for axes in panels[:3]:
        frame_patch(axes, chosen, grid)
    _remark(below[0], f"framed: {name}")
    padding = "; hatched: padding" if not inside.all() else ""
    _remark(below[3], f"{int(inside.sum())} of {grid.size} are image{padding}")
    save_figure(figure, path, dpi=_DPI)


def _canvas() -> tuple[Figure, list[Axes], list[Axes]]:
    """Return a figure, four panels in a row, and narrow axes below each."""
    figure = Figure(figsize=(10.4, 3.9), layout="constrained")
    cells = figure.add_gridspec(2, 4, height_ratios=(1, 0.05))
    panels = [figure.add_subplot(cells[0, column]) for column in range(4)]
    below = [figure.add_subplot(cells[1, column]) for column in range(4)]
    return figure, panels, below


def _draw_map(
    figure: Figure,
    panel: Axes,
    below: Axes,
    values: NDArray[np.floating],
    inside: NDArray[np.bool_],
    grid: PatchGrid,
    *,
    label: str,
) -> None:
    counted = values[inside].astype(np.float64)
    attention = label.startswith("times")
    low = 0.0 if attention else float(counted.min())
    top = top_of_scale(counted) if attention else float(counted.max())
    extend: Literal["neither", "max"] = "max" if counted.max() > top else "neither"
    scale = Normalize(low, top if top > low else low + 1)
    draw_heat(panel, values.astype(np.float64), inside, grid, scale)
    colour_bar(figure, scale, label, extend, cax=below, orientation="horizontal")


def _remark(below: Axes, text: str) -> None:
    below.set_axis_off()
    below.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, color=GREY)


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
