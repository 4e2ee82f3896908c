"""Lay one number per patch over an image: the pieces that patch figures are made of."""

import textwrap
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from ...runtime.files import write_durably
from ...teacher_cache.schema import PatchGrid

GREY = "#555555"
"""Colour of captions."""

_DPI = 200
# Even steps of lightness, so the order of values survives colour blindness and grey print. Low
# values let the image through; the colour bar shows the same mixture over a middle grey.
_STEPS = np.linspace(0, 1, 256)
HEAT = ListedColormap(np.c_[colormaps["inferno"](_STEPS)[:, :3], 0.3 + 0.55 * _STEPS])
"""Colours of a map that is laid over an image, opacity included."""

_OUTLINE = "#56B4E9"
_EXTENT = (0.0, 1.0, 1.0, 0.0)


def image_patches(valid: ArrayLike | None, grid: PatchGrid) -> NDArray[np.bool_]:
    """Return which patches are image, bool [N]; all of them where `valid` is None.

    Raises:
        ValueError: `valid` does not fit the grid, or no patch is image.
    """
    if valid is None:
        return np.ones(grid.size, np.bool_)
    inside = np.asarray(valid, np.bool_)
    if inside.shape != (grid.size,) or not inside.any():
        raise ValueError(
            f"`valid` marks image patches of a grid {grid}, shape ({grid.size},) with at least "
            f"one true; got shape {inside.shape} with {int(inside.sum())}"
        )
    return inside


def top_of_scale(values: NDArray[np.floating]) -> float:
    """Return where the colours of attention end, in times even attention: the 99th percentile.

    2 at the least: maps that are even shall look even.
    """
    return max(2.0, float(np.quantile(values, 0.99)))


def patch_values(name: str, values: ArrayLike, grid: PatchGrid) -> NDArray[np.float64]:
    """Return the values of a map as float64 [N].

    Raises:
        ValueError: they do not fit the grid or are not finite.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.shape != (grid.size,):
        raise ValueError(
            f"map {name!r} takes shape ({grid.size},) on a grid {grid}, got {numbers.shape}"
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"map {name!r} holds NaN or infinity")
    return numbers


def draw_maps(
    image: NDArray[np.uint8],
    maps: Mapping[str, NDArray[np.float64]],
    inside: NDArray[np.bool_],
    grid: PatchGrid,
    *,
    scale: Normalize,
    label: str,
    extend: Literal["neither", "max"],
    title: str | None,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of the image, then every map laid over it, and the axes of these panels.

    Padding is hatched and carries no colour. Raises ValueError unless image is uint8 [S, S, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[::2] != (image.shape[1], 3):
        raise ValueError(f"an image is uint8 [S, S, 3], got {image.dtype} {list(image.shape)}")
    figure = Figure(figsize=(2.6 * (len(maps) + 1) + 0.9, 3.05), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(maps) + 1, squeeze=False)[0])
    draw_picture(panels[0], image, "image")
    for axes, (name, values) in zip(panels[1:], maps.items(), strict=True):
        draw_picture(axes, in_grey(image), name)
        draw_heat(axes, values, inside, grid, scale)
    for axes in panels:
        hatch_padding(axes, inside, grid)
    colour_bar(figure, scale, label, extend, ax=panels, shrink=0.85, pad=0.01, aspect=18)
    if title is not None:
        lines = textwrap.fill(title, 32 * len(panels))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=10, parse_math=False)
    return figure, panels


def draw_picture(axes: Axes, image: NDArray[np.uint8], name: str) -> None:
    """Draw a square [S, S, 3] as a panel without ticks; patches are drawn in 0..1 over it."""
    axes.imshow(image, extent=_EXTENT)
    axes.set_title(name, fontsize=9, parse_math=False)
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    axes.spines[:].set_visible(False)


def in_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image [S, S, 3] without its colours, so that it does not mix with a map's."""
    return np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)


def draw_heat(
    axes: Axes,
    values: NDArray[np.float64],
    inside: NDArray[np.bool_],
    grid: PatchGrid,
    scale: Normalize,
) -> None:
    """Lay a map [N] over a panel; padding carries no colour."""
    heat = np.where(inside, values, np.nan).reshape(grid.rows, grid.cols)
    axes.imshow(heat, cmap=HEAT, norm=scale, extent=_EXTENT, interpolation="nearest")


def tint_patches(axes: Axes, inside: NDArray[np.bool_], grid: PatchGrid) -> None:
    """Tint the patches that are image, with lines between them."""
    cells = [_cell(int(patch), grid) for patch in np.flatnonzero(inside)]
    tint = PatchCollection(cells, facecolor=f"{_OUTLINE}59", edgecolor="#FFFFFF73", linewidth=0.4)
    axes.add_collection(tint)


def hatch_padding(axes: Axes, inside: NDArray[np.bool_], grid: PatchGrid) -> None:
    """Hatch the patches that are padding."""
    cells = [_cell(int(patch), grid) for patch in np.flatnonzero(~inside)]
    axes.add_collection(
        PatchCollection(cells, facecolor="none", edgecolor="#FFFFFF99", linewidth=0, hatch="////")
    )


def colour_bar(
    figure: Figure,
    scale: Normalize,
    label: str,
    extend: Literal["neither", "max"],
    **options: Any,
) -> None:
    """Draw what the colours of `draw_heat` mean; options are those of `Figure.colorbar`."""
    bar = figure.colorbar(ScalarMappable(scale, HEAT), extend=extend, **options)
    bar.ax.set_facecolor("#808080")
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def outline_region(axes: Axes, mask: ArrayLike, grid: PatchGrid) -> None:
    """Outline where a mask, [N] per patch or [S, S] pixels of the square, is at least one half.

    Raises:
        ValueError: the mask is neither.
    """
    region = np.asarray(mask, np.float64)
    if region.shape == (grid.size,):
        region = region.reshape(grid.rows, grid.cols)
    elif region.ndim != 2 or region.shape[0] != region.shape[1]:
        raise ValueError(
            f"a mask takes shape ({grid.size},) or a square of pixels, got {region.shape}"
        )
    if region.max() < 0.5:
        return
    # Every cell becomes 8 x 8 points at least, so that the outline follows edges, not diagonals.
    times = max(1, -(-256 // max(region.shape)))
    fine = np.pad(np.kron(region, np.ones((times, times))), 1)
    y, x = ((np.arange(n) - 0.5) / (n - 2) for n in fine.shape)
    line = axes.contour(x, y, fine, levels=[0.5], colors=[_OUTLINE], linewidths=1.1)
    line.set_path_effects([withStroke(linewidth=2.2, foreground="black")])


def frame_patch(axes: Axes, patch: int, grid: PatchGrid) -> None:
    """Frame one patch, from outside, so that its own colour stays visible."""
    row, col = divmod(patch, grid.cols)
    corner = (col - 0.4) / grid.cols, (row - 0.4) / grid.rows
    frame = Rectangle(corner, 1.8 / grid.cols, 1.8 / grid.rows, clip_on=False)
    frame.set(facecolor="none", edgecolor="white", linewidth=1.2)
    frame.set_path_effects([withStroke(linewidth=2.8, foreground="black")])
    axes.add_patch(frame)


def caption(figure: Figure, *remarks: str) -> None:
    """Write small remarks below the panels."""
    if remarks:
        figure.supxlabel("; ".join(remarks), x=0.01, ha="left", fontsize=7, color=GREY)


def save_figure(figure: Figure, path: Path, dpi: int = _DPI) -> None:
    """Write a figure, whole or not at all; missing folders are made. Equal figures, equal bytes.

    Args:
        figure: to write.
        path: ends in what to write: `.png`, `.pdf` or `.svg`.
        dpi: of a PNG, and of the pixels inside the others.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    form, data = path.suffix.removeprefix("."), BytesIO()
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # no metadata of the moment
    options: dict[str, Any] = {"pil_kwargs": {"optimize": True}} if form == "png" else {}
    with rc_context({"svg.hashsalt": "medalign", "pdf.fonttype": 42}):
        figure.savefig(data, format=form, dpi=dpi, metadata=dated.get(form), **options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data.getvalue())
    except OSError as error:  # of a full disk it names no file, else perhaps the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from error


def _cell(patch: int, grid: PatchGrid) -> Rectangle:
    row, col = divmod(patch, grid.cols)
    return Rectangle((col / grid.cols, row / grid.rows), 1 / grid.cols, 1 / grid.rows)
