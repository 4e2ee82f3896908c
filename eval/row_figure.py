"""Draw one row of a teacher cache: where the expert looks, what it finds alike, what is padding."""

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..teacher_cache.reader import TeacherRow
from ..teacher_cache.schema import PatchGrid
from .patch_panels import (
    GREY,
    colour_bar,
    draw_heat,
    draw_picture,
    frame_patch,
    hatch_padding,
    in_grey,
    save_figure,
    tint_patches,
)

_DPI = 88  # four panels for a screen, not for print
_BLANK = np.full((2, 2, 3), 150, np.uint8)

Float64 = NDArray[np.float64]


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
    kept, name = teacher.valid, "patch {},{}".format(*divmod(chosen, grid.cols))
    picture = _BLANK if square is None else square
    figure, panels, below = _canvas()
    figure.suptitle(title, x=0.012, ha="left", fontsize=11, parse_math=False)
    figure.supxlabel(facts, x=0.012, ha="left", fontsize=8, color=GREY, parse_math=False)
    draw_picture(panels[0], picture, "image" if square is not None else "image: not there")
    draw_picture(panels[1], in_grey(picture), "attention of [cls]")
    draw_picture(panels[2], in_grey(picture), f"similarity to {name}")
    draw_picture(panels[3], _BLANK, "patches that count")

    attention = teacher.attention / max(float(teacher.attention[kept].mean()), 1e-30)
    _draw_map(figure, panels[1], below[1], attention, kept, grid, label="times even attention")
    gram = teacher.gram()[chosen]
    # Itself it is like by 1, which says nothing and would use up the colours.
    gram[chosen] = np.delete(gram, chosen)[np.delete(kept, chosen)].max(initial=-1)
    _draw_map(figure, panels[2], below[2], gram, kept, grid, label="cosine similarity")
    tint_patches(panels[3], kept, grid)
    for axes in panels:
        hatch_padding(axes, kept, grid)
    for axes in panels[:3]:
        frame_patch(axes, chosen, grid)
    _remark(below[0], f"framed: {name}")
    padding = "; hatched: padding" if not kept.all() else ""
    _remark(below[3], f"{int(kept.sum())} of {grid.size} are image{padding}")
    save_figure(figure, path, dpi=_DPI)


def _canvas() -> tuple[Figure, list[Axes], list[Axes]]:
    """Return a figure, four panels in a row, and a narrow place below each."""
    figure = Figure(figsize=(10.4, 3.9), layout="constrained")
    places = figure.add_gridspec(2, 4, height_ratios=(1, 0.05))
    panels = [figure.add_subplot(places[0, at]) for at in range(4)]
    below = [figure.add_subplot(places[1, at]) for at in range(4)]
    return figure, panels, below


def _draw_map(
    figure: Figure,
    panel: Axes,
    below: Axes,
    values: NDArray[np.floating],
    kept: NDArray[np.bool_],
    grid: PatchGrid,
    *,
    label: str,
) -> None:
    shown = values[kept].astype(np.float64)
    attention = label.startswith("times")
    low = 0.0 if attention else float(shown.min())
    top = max(2.0, float(np.quantile(shown, 0.99))) if attention else float(shown.max())
    extend: Literal["neither", "max"] = "max" if shown.max() > top else "neither"
    scale = Normalize(low, top if top > low else low + 1)
    draw_heat(panel, values.astype(np.float64), kept, grid, scale)
    colour_bar(figure, scale, label, extend, cax=below, orientation="horizontal")


def _remark(below: Axes, text: str) -> None:
    below.set_axis_off()
    below.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, color=GREY)
