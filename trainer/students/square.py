"""Students that see every image as one square of one size, cut into one grid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ...pipeline.geometry import GeometryName, apply_geometry, normalise
from ...teacher_cache.schema import PatchGrid
from .family import Float32, StudentError

BILINEAR, BICUBIC = 2, 3
CHANNELS: Final = {
    "image_mean": "three finite numbers",
    "image_std": "three finite numbers above 0",
}
"""What an image processor must hold for its channels."""

Channels = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """How an image becomes the square that the vision tower sees.

    Attributes:
        grid: of the visual tokens; N = grid.size.
        image_size: side of the square in pixels.
        geometry: how an image becomes the square.
        mean, std: normalisation of the three channels, values in 0..1.
        fill: colour of the padding.
        resample: filter, as Pillow numbers them; `pad` and `crop` know the bicubic one alone.
    """

    grid: PatchGrid
    image_size: int
    geometry: GeometryName
    mean: Channels
    std: Channels
    fill: tuple[int, int, int]
    resample: int = BICUBIC

    @classmethod
    def of(
        cls,
        path: Path,
        images: Any,
        grid: PatchGrid,
        size: int,
        geometry: str,
        resample: int = BICUBIC,
    ) -> Self:
        """Take the colours from an image processor.

        Raises:
            StudentError: mean or standard deviation is not that of three channels.
        """
        mean, std = channels(path, images)
        return cls(
            grid=grid,
            image_size=size,
            geometry=cast(GeometryName, geometry),
            mean=mean,
            std=std,
            # As LLaVA does: the mean colour, cut to whole numbers.
            fill=cast(tuple[int, int, int], tuple(int(x * 255) for x in mean)),
            resample=resample,
        )

    @property
    def fixed_grid(self) -> PatchGrid:
        """Visual tokens of every image."""
        return self.grid

    def see(self, rgb: npt.NDArray[np.uint8]) -> tuple[Float32, PatchGrid]:
        """Return float32 [3, S, S] and the grid."""
        if self.resample == BICUBIC:
            square = apply_geometry(rgb, self.geometry, self.image_size, self.fill)
        else:
            side = (self.image_size, self.image_size)
            square = np.array(Image.fromarray(rgb).resize(side, self.resample))
        return normalise(square, self.mean, self.std), self.grid

    def __str__(self) -> str:
        """The grid, for a user."""
        return f"{self.grid} visual tokens"


def fits_channels(key: str, value: object) -> bool:
    """Whether a value can be an image processor's `image_mean` or `image_std`."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    numbers = [x for x in value if isinstance(x, int | float) and not isinstance(x, bool)]
    least = 0.0 if key == "image_std" else -math.inf
    return len(numbers) == 3 and all(least < x < math.inf for x in numbers)


def channels(path: Path, images: Any) -> tuple[Channels, Channels]:
    """Mean and standard deviation of an image processor, for values in 0..1.

    Raises:
        StudentError: one of them is not that of three channels.
    """
    for key, expected in CHANNELS.items():
        value = getattr(images, key)
        if not fits_channels(key, value):
            raise StudentError(f"{path}: {key} is {value!r}, expected {expected}")
    mean, std = (tuple(float(x) for x in v) for v in (images.image_mean, images.image_std))
    return cast(Channels, mean), cast(Channels, std)


def check_pixels(path: Path, images: Any, resample: int) -> None:
    """Refuse settings of an image processor that medalign's own pixels would not follow.

    Raises:
        StudentError: names the setting.
    """
    followed: Mapping[str, tuple[object, object]] = {
        "resample": (int(images.resample), resample),
        "do_rescale": (bool(images.do_rescale), True),
        "rescale_factor": (round(float(images.rescale_factor) * 255, 6), 1.0),
        "do_normalize": (bool(images.do_normalize), True),
    }
    filters = {BILINEAR: "bilinear", BICUBIC: "bicubic"}
    for name, (value, expected) in followed.items():
        if value != expected:
            raise StudentError(
                f"{path}: the image processor has {name} {getattr(images, name)!r}; medalign "
                f"resizes by the {filters[resample]} filter ({resample}), divides by 255 and "
                "normalises"
            )


def black_square(config: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """One black image [1, 3, S, S]."""
    side = config.vision_config.image_size
    return {"pixel_values": torch.zeros(1, 3, side, side, device=device, dtype=dtype)}
