"""From source pixels to the square that a vision tower sees, and which patches are image.

A geometry is a pure mapping. `pad` pads to a square with the mean colour, image in the middle
(LLaVA), `crop` scales the shorter side and keeps the centre (CLIP), `stretch` scales both sides.
Expert and student see the same square when they use the same geometry, whatever their sizes, so
a patch index means the same place to both.

Coordinates are continuous: source pixel i covers [i, i + 1], the square is [0, 1] x [0, 1], x and
u run right, y and v run down. Patches are numbered row by row from the top left.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..teacher_cache.schema import PatchGrid

GeometryName = Literal["pad", "crop", "stretch"]
GEOMETRIES: tuple[GeometryName, ...] = get_args(GeometryName)
"""The names, in the order of the documentation."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""OpenAI CLIP's mean per channel, of values in 0..1."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's standard deviation per channel, of values in 0..1."""

_STRIP_PIXELS = 1 << 24  # largest padded piece held at once: 48 MiB
_LONGEST_ASPECT = 64  # beyond it the part that `crop` throws away would fill the memory


@dataclass(frozen=True, slots=True)
class Box:
    """Hold a rectangle; in the square unless stated otherwise."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Mapping:
    """Map source coordinates to the square: u = x * x_scale + x_offset, v likewise.

    Attributes:
        height: of the source, in pixels.
        width: of the source, in pixels.
    """

    height: int
    width: int
    x_scale: float
    x_offset: float
    y_scale: float
    y_offset: float

    def to_square(
        self, x: ArrayLike, y: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (u, v) of source points (x, y); outside 0..1 the tower does not see them."""
        u = np.asarray(x, np.float64) * self.x_scale + self.x_offset
        v = np.asarray(y, np.float64) * self.y_scale + self.y_offset
        return u, v

    def to_source(
        self, u: ArrayLike, v: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (x, y) of points (u, v) of the square; outside the source they are padding."""
        x = (np.asarray(u, np.float64) - self.x_offset) / self.x_scale
        y = (np.asarray(v, np.float64) - self.y_offset) / self.y_scale
        return x, y

    def covered(self) -> Box:
        """Return the part of the square that shows image; the rest is padding."""
        u, v = self.to_square([0, self.width], [0, self.height])
        (left, right), (top, bottom) = np.clip(u, 0, 1), np.clip(v, 0, 1)
        return Box(float(left), float(top), float(right), float(bottom))

    def patch_box(self, patch: int, grid: PatchGrid) -> Box:
        """Return the rectangle, in source pixels, that patch number `patch` looks at."""
        row, col = divmod(patch, grid.cols)
        x, y = self.to_source(
            np.array([col, col + 1]) / grid.cols, np.array([row, row + 1]) / grid.rows
        )
        return Box(float(x[0]), float(y[0]), float(x[1]), float(y[1]))

    def patch_at(self, x: float, y: float, grid: PatchGrid) -> int | None:
        """Return the patch that looks at a source point, None if it is cropped away."""
        u, v = (float(coordinate) for coordinate in self.to_square(x, y))
        if not (0 <= u < 1 and 0 <= v < 1):
            return None
        return int(v * grid.rows) * grid.cols + int(u * grid.cols)


def mapping(geometry: GeometryName, height: int, width: int) -> Mapping:
    """Return where a geometry puts an image of height x width pixels.

    `pad` and `stretch` are exact. `crop` is the limit of large squares: `apply_geometry` rounds
    the longer side and the first column kept down to whole pixels as CLIP does, which moves the
    picture by less than one pixel of the square.

    Raises:
        ValueError: for an unknown geometry or a side below 1.
    """
    _check(geometry, height, width)
    if geometry == "stretch":
        return Mapping(height, width, 1 / width, 0.0, 1 / height, 0.0)
    if geometry == "pad":
        side = max(height, width)
        before, above = _padding(height, width)
        return Mapping(height, width, 1 / side, before / side, 1 / side, above / side)
    side = min(height, width)
    x_offset, y_offset = (1 - width / side) / 2, (1 - height / side) / 2
    return Mapping(height, width, 1 / side, x_offset, 1 / side, y_offset)


def apply_geometry(
    rgb: NDArray[np.uint8],
    geometry: GeometryName,
    size: int,
    fill: tuple[int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """Return the square a tower sees: uint8 [size, size, 3] from [H, W, 3].

    Pillow's bicubic filter with antialiasing. Bit for bit what transformers' Pillow processors
    give before rescaling: `pad` as LlavaImageProcessorPil(do_pad=True), which is LLaVA's
    expand2square then resize, `crop` as CLIPImageProcessorPil, each with size = crop = `size`.
    Only `crop` of images more than 64 times as long as wide may differ by one grey level.

    Args:
        rgb: the image as `read_image` gives it.
        geometry: pad, crop or stretch.
        size: side of the square in pixels.
        fill: colour of the padding; None means `mean_colour()`. Read by `pad` only.

    Raises:
        ValueError: for an unknown geometry, size < 1 or an array that is not uint8 [H, W, 3].
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or size < 1:
        raise ValueError(
            f"apply_geometry takes uint8 [H, W, 3] and a size of at least 1, "
            f"got {rgb.dtype} {list(rgb.shape)} and {size}"
        )
    height, width = rgb.shape[:2]
    _check(geometry, height, width)
    if geometry == "crop":
        return _crop(rgb, size)
    if geometry == "stretch" or height == width:
        return _resize(rgb, size, size)
    return _pad(rgb, size, mean_colour() if fill is None else fill)


def _padding(height: int, width: int) -> tuple[int, int]:
    """Return columns before and rows above the image; the odd one goes right or below (LLaVA)."""
    side = max(height, width)
    return (side - width) // 2, (side - height) // 2


def _resize(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return uint8 [height, width, 3], filtered bicubically with antialiasing."""
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def _pad(rgb: NDArray[np.uint8], size: int, fill: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pad and resize without ever holding the padded square.

    Pillow filters along rows first and then along columns, rounding in between. Doing the two
    passes one by one gives the same bits, at the cost of the image instead of the square.
    """
    height, width = rgb.shape[:2]
    top = _padding(height, width)[1]
    canvas = np.empty((max(height, width), size, 3), np.uint8)
    canvas[:] = fill  # rows of padding stay what they are under the first pass
    strips = [_resize(strip, len(strip), size) for strip in _strips(rgb, fill)]
    canvas[top : top + height] = np.concatenate(strips)
    return _resize(canvas, size, size)


def _strips(rgb: NDArray[np.uint8], fill: tuple[int, int, int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the rows of the image, padded to full width, a few at a time."""
    height, width = rgb.shape[:2]
    if width >= height:
        yield rgb
        return
    before = _padding(height, width)[0]
    rows = max(1, _STRIP_PIXELS // height)
    for start in range(0, height, rows):
        piece = rgb[start : start + rows]
        strip = np.empty((len(piece), height, 3), np.uint8)
        strip[:] = fill
        strip[:, before : before + width] = piece
        yield strip


def _crop(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `size` and keep the centre, as CLIP does: [size, size, 3].

    An image more than 64 times as long as wide is resized only where it is kept, which may differ
    from CLIP by one grey level.
    """
    height, width = rgb.shape[:2]
    short, long = min(height, width), max(height, width)
    scaled = int(size * long / short)  # rounded down, as CLIP and transformers do
    start = (scaled - size) // 2
    if long > _LONGEST_ASPECT * short:
        ends = (start * long / scaled, (start + size) * long / scaled)
        box: tuple[float, float, float, float] = (0, ends[0], width, ends[1])
        if width > height:
            box = (ends[0], 0, ends[1], height)
        image = Image.fromarray(rgb)
        return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    if width > height:
        return _resize(rgb, size, scaled)[:, start : start + size].copy()
    return _resize(rgb, scaled, size)[start : start + size].copy()


def valid_patches(
    geometry: GeometryName, height: int, width: int, grid: PatchGrid
) -> NDArray[np.bool_]:
    """Return which patches show image, bool [N]; the others are padding.

    A patch counts when at least half of its area is image. An image so thin that no patch reaches
    half keeps the patches with the largest share, so that no image is without any.

    Raises:
        ValueError: for an unknown geometry or a side below 1.
    """
    x, y = _patch_edges(mapping(geometry, height, width), grid)
    share = np.outer(_share_inside(y, height), _share_inside(x, width)).ravel()
    enough = min(0.5, float(share.max())) - 1e-9  # exactly half counts in spite of rounding
    result: NDArray[np.bool_] = share >= enough
    return result


def mask_patches(
    mask: NDArray[np.bool_] | NDArray[np.floating],
    geometry: GeometryName,
    grid: PatchGrid,
) -> NDArray[np.float32]:
    """Return the share of each patch that a mask covers, float32 [N] in 0..1.

    The mask, [H, W] in source pixels with values 0..1, is integrated exactly over the area of each
    patch; padding counts as not covered.

    Raises:
        ValueError: if the mask is not [H, W], holds other values, or the geometry is unknown.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask is [H, W], got {list(mask.shape)}")
    height, width = mask.shape
    x, y = _patch_edges(mapping(geometry, height, width), grid)
    values = mask.astype(np.float64)
    if not (values.min() >= 0 and values.max() <= 1):  # false for NaN too
        raise ValueError(
            f"a mask holds values in 0..1, got {values.min():g} to {values.max():g}; "
            "compare it with a threshold first"
        )
    share = _pixel_shares(y, height) @ values @ _pixel_shares(x, width).T
    return np.clip(share, 0, 1).astype(np.float32).ravel()


def normalise(
    rgb: NDArray[np.uint8],
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> NDArray[np.float32]:
    """Return (rgb / 255 - mean) / std as float32 [3, S, S] from uint8 [S, S, 3].

    Bit for bit what transformers' Pillow processors give: 256 values per channel, looked up.
    """
    levels = (np.arange(256) * (1 / 255)).astype(np.float32)
    tables = (levels - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return np.stack([table[rgb[..., channel]] for channel, table in enumerate(tables)])


def mean_colour(mean: tuple[float, float, float] = CLIP_MEAN) -> tuple[int, int, int]:
    """Return a mean as the 8-bit colour that LLaVA pads with: (122, 116, 104) for CLIP's."""
    red, green, blue = (int(channel * 255) for channel in mean)
    return red, green, blue


def _check(geometry: str, height: int, width: int) -> None:
    if geometry not in GEOMETRIES:
        raise ValueError(f'unknown geometry "{geometry}", known are {", ".join(GEOMETRIES)}')
    if height < 1 or width < 1:
        raise ValueError(f"an image has sides of at least 1 pixel, got {height} x {width}")


def _patch_edges(
    mapped: Mapping, grid: PatchGrid
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the source coordinates of the lines between patches: x [cols + 1], y [rows + 1]."""
    u, v = np.arange(grid.cols + 1) / grid.cols, np.arange(grid.rows + 1) / grid.rows
    return mapped.to_source(u, v)


def _share_inside(edges: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Return the share of each interval between edges [n + 1] that lies in [0, length]: [n]."""
    return np.diff(np.clip(edges, 0, length)) / np.diff(edges)


def _pixel_shares(edges: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Return which share of each interval every pixel makes up: [n, length]."""
    pixels = np.arange(length)
    start = np.maximum(edges[:-1, None], pixels)
    end = np.minimum(edges[1:, None], pixels + 1)
    shares: NDArray[np.float64] = np.maximum(end - start, 0) / np.diff(edges)[:, None]
    return shares
