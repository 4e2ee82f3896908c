"""Students that see an image at its own shape: the grid follows its height and width."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...pipeline.geometry import normalise
from ...teacher_cache.schema import PatchGrid
from .family import Float32, StudentError, UnfitShapeError
from .square import BICUBIC, Channels, channels, check_pixels

_LONGEST_ASPECT = 200  # as Qwen's own processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Flexible:
    """How an image becomes the flattened patches of Qwen's vision tower.

    Attributes:
        patch_size: side of a patch in pixels.
        merge: patches on a side of one visual token.
        frames: how often a still image is repeated in time.
        least, most: pixels of the resized image.
        mean, std: normalisation of the three channels, values in 0..1.
    """

    patch_size: int
    merge: int
    frames: int
    least: int
    most: int
    mean: Channels
    std: Channels

    @classmethod
    def of(cls, path: Path, images: Any) -> Self:
        """Take all numbers from an image processor.

        Raises:
            StudentError: it does what medalign does not follow.
        """
        check_pixels(path, images, BICUBIC)
        least, most = images.size.get("shortest_edge"), images.size.get("longest_edge")
        if not (images.do_resize and least and most):
            raise StudentError(
                f"{path}: the image processor must resize between size.shortest_edge and "
                f"size.longest_edge pixels, it has {dict(images.size)}"
            )
        mean, std = channels(path, images)
        return cls(
            patch_size=images.patch_size,
            merge=images.merge_size,
            frames=images.temporal_patch_size,
            least=least,
            most=most,
            mean=mean,
            std=std,
        )

    @property
    def fixed_grid(self) -> None:
        """None: each image has its own."""
        return None

    def grid_of(self, height: int, width: int) -> PatchGrid:
        """Return the visual tokens of an image of height x width pixels.

        Sides are rounded to whole tokens, then scaled together so that `least` and `most` hold.

        Raises:
            UnfitShapeError: one side is more than 200 times the other.
        """
        if max(height, width) > _LONGEST_ASPECT * min(height, width):
            raise UnfitShapeError(
                f"{height}x{width} pixels: this student takes images whose longer side is at most "
                f"{_LONGEST_ASPECT} times the shorter"
            )
        side = self.patch_size * self.merge
        rows, cols = round(height / side), round(width / side)
        pixels = rows * cols * side * side
        if pixels > self.most:
            shrink = math.sqrt(height * width / self.most)
            rows = max(1, math.floor(height / shrink / side))
            cols = max(1, math.floor(width / shrink / side))
        elif pixels < self.least:
            grow = math.sqrt(self.least / (height * width))
            rows, cols = math.ceil(height * grow / side), math.ceil(width * grow / side)
        return PatchGrid(rows, cols)

    def see(self, rgb: npt.NDArray[np.uint8]) -> tuple[Float32, PatchGrid]:
        """Return float32 [patches, 3 * frames * patch_size ** 2] and the grid of visual tokens.

        Patches of one visual token follow each other: its four, row by row.
        """
        grid = self.grid_of(*rgb.shape[:2])
        side, merge = self.patch_size, self.merge
        size = (grid.cols * merge * side, grid.rows * merge * side)
        resized = Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)
        pixels = normalise(np.array(resized), self.mean, self.std)
        cut = pixels.reshape(3, grid.rows, merge, side, grid.cols, merge, side)
        cut = cut.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
        still = np.broadcast_to(cut, (*cut.shape[:5], self.frames, side, side))
        return still.reshape(grid.size * merge**2, -1), grid

    def __str__(self) -> str:
        """Most visual tokens of an image."""
        most = self.most // (self.patch_size * self.merge) ** 2
        return f"up to {most} visual tokens, rows and columns as the image has them"
