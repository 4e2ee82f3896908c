"""One attention map of an image, and where it lies in the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...pipeline.geometry import GeometryName, mapping
from ...teacher_cache.schema import PatchGrid
from ..figures.patches import HEAT, top_of_scale


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionMap:
    """Attention to the patches of an image.

    Attributes:
        label: whose it is.
        values: [N], not negative, any scale.
        valid: bool [N], False where a patch is padding; at least one is True.
        grid: rows and columns of the patches.
        geometry: how the image became the square that the patches cut.
    """

    label: str
    values: NDArray[np.floating]
    valid: NDArray[np.bool_]
    grid: PatchGrid
    geometry: GeometryName

    def relative(self) -> NDArray[np.float64]:
        """Return the values over their mean over image patches: 1 is even attention, [N]."""
        mean = float(self.values[self.valid].mean(dtype=np.float64))
        return self.values.astype(np.float64) / max(mean, 1e-30)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A rectangle in source pixels; it may reach beyond the image."""

    left: float
    top: float
    width: float
    height: float

    def around(self, other: "Rectangle") -> "Rectangle":
        """Return the smallest rectangle that holds both."""
        x, y = min(self.left, other.left), min(self.top, other.top)
        right = max(self.left + self.width, other.left + other.width)
        bottom = max(self.top + self.height, other.top + other.height)
        return Rectangle(x, y, right - x, bottom - y)


def square_of(geometry: GeometryName, height: int, width: int) -> Rectangle:
    """Return where the square that a tower saw lies, in pixels of the image.

    `pad` reaches beyond the image, `crop` leaves its ends out, `stretch` is the image itself.
    """
    xs, ys = mapping(geometry, height, width).to_source([0, 1], [0, 1])
    x, y = float(xs[0]), float(ys[0])
    return Rectangle(x, y, float(xs[1]) - x, float(ys[1]) - y)


def common_top(maps: Sequence[AttentionMap]) -> float:
    """Return where the colours of all maps of one image end: the 99th percentile of them."""
    return top_of_scale(np.concatenate([one.relative()[one.valid] for one in maps]))


def heat_png(attention: AttentionMap, top: float) -> bytes:
    """Return a map as PNG with one pixel for each patch, [rows, cols], clear where padding is."""
    # Through 8 bits: matplotlib then takes table entries, and no rounding differs by machine.
    levels = np.round(np.clip(attention.relative() / top, 0, 1) * 255).astype(np.uint8)
    colours = HEAT(levels, bytes=True)
    colours[~attention.valid] = 0
    grid = attention.grid
    data = BytesIO()
    image = Image.fromarray(colours.reshape(grid.rows, grid.cols, 4), "RGBA")
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def heat_gradient() -> str:
    """Return the colours of maps as CSS, from no attention to the most."""
    stops = [HEAT(level, bytes=True) for level in range(0, 256, 51)]
    colours = ", ".join(f"rgb({r} {g} {b} / {a / 255:.2f})" for r, g, b, a in stops)
    return f"linear-gradient(90deg, {colours})"
