"""Draw figures: loss curves, where attention lies, and which patches look alike.

Every function writes one file and keeps no state; matplotlib's pyplot is never touched.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ...teacher_cache.schema import PatchGrid
from .patches import (
    caption,
    draw_maps,
    frame_patch,
    image_patches,
    outline_region,
    patch_values,
    save_figure,
    top_of_scale,
)

PANELS = {
    "lm": "lm: language modelling [nats]",
    "vis": "vis: spatial alignment",
    "att": "att: attention alignment [nats]",
}
"""Terms of a step that have a panel, and its heading."""

SMOOTH_FROM = 100
"""Runs of more steps than this get a running mean."""

# Okabe and Ito's colours, distinct with every common colour blindness; dashes are, in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[str, ...] = ("-", "--", "-.", ":")


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Draw the loss terms of runs against the step: a panel per term, a line per run.

    Runs of more than 100 steps are drawn twice: thin as they are, thick as a running mean. A term
    that no run has gets no panel; a value that is missing or not finite leaves a gap.

    Args:
        runs: name -> the steps of that run, each with `step` and any of `lm`, `vis`, `att`.
        path: PNG, PDF or SVG to write; missing folders are made.

    Raises:
        ValueError: no run holds any of the terms.
    """
    drawn = [
        term
        for term in PANELS
        if any(np.isfinite(_series(steps, term)).any() for steps in runs.values())
    ]
    if not drawn:
        raise ValueError("loss curves take runs with steps that hold lm, vis or att, got none")
    figure = Figure(figsize=(3.2 * len(drawn) + 0.2, 2.9), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(drawn), squeeze=False)[0])
    for axes, term in zip(panels, drawn, strict=True):
        for index, steps in enumerate(runs.values()):
            _curve(axes, steps, term, index)
        axes.set_title(PANELS[term], loc="left", fontsize=9)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    lines = [line for line in panels[0].get_lines() if line.get_gid() == "run"]
    legend = figure.legend(
        lines, list(runs), loc="outside upper left", ncols=4, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a run may be called a_$1
    if any(len(steps) > SMOOTH_FROM for steps in runs.values()):
        caption(figure, "thin: every step", "thick: running mean over 5% of the steps")
    save_figure(figure, path)


def attention_overlay(
    image: NDArray[np.uint8],
    maps: Mapping[str, ArrayLike],
    grid: PatchGrid,
    path: Path,
    *,
    valid: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    title: str | None = None,
) -> None:
    """Draw an image beside its attention maps, all on one scale.

    Every map is divided by its mean over image patches, so 1 is what even attention would give a
    patch, and maps with different totals can be compared. Colours end at the 99th percentile.

    Args:
        image: the square a tower sees, uint8 [S, S, 3].
        maps: name -> attention per patch, [N], not negative.
        grid: rows and columns of the patches, N in all.
        path: PNG, PDF or SVG to write; missing folders are made.
        valid: bool [N], which patches are image; the others are hatched and not counted.
        mask: region to outline, as its share per patch, [N], or as pixels of the square, [S, S].
        title: line above the panels.

    Raises:
        ValueError: a shape does not fit the grid, or a map is negative, not finite or all zero.
    """
    inside = image_patches(valid, grid)
    relative = {name: _relative(name, values, inside, grid) for name, values in maps.items()}
    pooled = _pooled(relative, inside)
    top = top_of_scale(pooled)
    figure, panels = draw_maps(
        image,
        relative,
        inside,
        grid,
        scale=Normalize(0.0, top),
        label="attention, times even attention\n(one scale for all maps)",
        extend="max" if pooled.max() > top else "neither",
        title=title,
    )
    remarks = _padding_remark(inside)
    if mask is not None:
        for axes in panels:
            outline_region(axes, mask, grid)
        remarks.append("outlined: region of the mask")
    caption(figure, *remarks)
    save_figure(figure, path)


def similarity_map(
    image: NDArray[np.uint8],
    maps: Mapping[str, ArrayLike],
    patch: int,
    grid: PatchGrid,
    path: Path,
    *,
    valid: ArrayLike | None = None,
    title: str | None = None,
) -> None:
    """Draw how similar every patch is to one chosen patch, all maps on one scale.

    Args:
        image: the square a tower sees, uint8 [S, S, 3].
        maps: name -> cosine similarity to the chosen patch (its row of the gram matrix), [N].
        patch: number of the chosen patch, row by row from the top left; it is framed.
        grid: rows and columns of the patches, N in all.
        path: PNG, PDF or SVG to write; missing folders are made.
        valid: bool [N], which patches are image; the others are hatched.
        title: line above the panels.

    Raises:
        ValueError: a shape does not fit the grid, a value is not finite, or there is no such patch.
    """
    inside = image_patches(valid, grid)
    if not 0 <= patch < grid.size:
        raise ValueError(f"patch must be 0 to {grid.size - 1} on a grid {grid}, got {patch}")
    similarity = {name: patch_values(name, values, grid) for name, values in maps.items()}
    pooled = _pooled(similarity, inside)
    figure, panels = draw_maps(
        image,
        similarity,
        inside,
        grid,
        scale=Normalize(float(pooled.min()), float(pooled.max())),
        label="cosine similarity\n(one scale for all maps)",
        extend="neither",
        title=title,
    )
    for axes in panels:
        frame_patch(axes, patch, grid)
    caption(figure, "framed: chosen patch", *_padding_remark(inside))
    save_figure(figure, path)


def _curve(axes: Axes, steps: Sequence[Mapping[str, float]], term: str, index: int) -> None:
    """Draw one run; the line that stands for it in the legend carries the gid `run`."""
    x, y = _series(steps, "step"), _series(steps, term)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    colour = _COLOURS[index % len(_COLOURS)]
    dashes = _DASHES[index % len(_DASHES)]
    if len(x) > SMOOTH_FROM:
        axes.plot(x, y, color=colour, linewidth=0.5, alpha=0.35)
        y = _running_mean(y, max(2, len(y) // 20))
    # A run of one step is a point, and a line would hide it.
    marker = "o" if len(x) < 2 else None
    axes.plot(
        x, y, color=colour, linestyle=dashes, linewidth=1.5, marker=marker, markersize=4, gid="run"
    )


def _series(steps: Sequence[Mapping[str, float]], name: str) -> NDArray[np.float64]:
    """Return one field of every step, NaN where it is missing or None."""
    values = (step.get(name) for step in steps)
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the mean over a window around each value; gaps stay, and do not spread."""
    finite = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite.astype(np.float64), window, mode="same")
    return np.where(finite, total / np.maximum(count, 1.0), np.nan)


def _relative(
    name: str, values: ArrayLike, inside: NDArray[np.bool_], grid: PatchGrid
) -> NDArray[np.float64]:
    attention = patch_values(name, values, grid)
    mean = float(attention[inside].mean())
    if attention.min() < 0 or mean == 0:
        raise ValueError(f"map {name!r} is no attention: it must be >= 0 and not zero everywhere")
    return attention / mean


def _pooled(
    maps: Mapping[str, NDArray[np.float64]], inside: NDArray[np.bool_]
) -> NDArray[np.float64]:
    if not maps:
        raise ValueError("a patch figure takes at least one map, got none")
    return np.concatenate([values[inside] for values in maps.values()])


def _padding_remark(inside: NDArray[np.bool_]) -> list[str]:
    return [] if inside.all() else ["hatched: padding, not image"]
