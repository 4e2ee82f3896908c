"""The images of a report: read once, made small, with attention maps laid over them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...pipeline.geometry import GeometryName
from ...pipeline.manifest import ManifestError, resolve_image
from ...pipeline.pixels import Alpha, DecodedImage, PixelsError, read_image
from ...teacher_cache.reader import TeacherCache
from ...teacher_cache.schema import TeacherCacheError
from .attention_maps import AttentionMap, Rectangle, common_top, heat_png, square_of

EXPERT = "expert"
"""Label of the attention that comes from a teacher cache."""

_QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image, as a report shows it.

    Attributes:
        path: as the manifest has it.
        number: of the picture in its report, from 0.
        jpeg: the picture, made small; empty if it could not be read.
        height, width: of the image itself, in pixels; 0 if it could not be read.
        expert: the expert's attention, None without a cache or without a row in it.
        remarks: what is missing, and why.
    """

    path: str
    number: int
    jpeg: bytes = b""
    height: int = 0
    width: int = 0
    expert: AttentionMap | None = None
    remarks: tuple[str, ...] = ()

    @property
    def area(self) -> Rectangle:
        """The image itself, in source pixels."""
        return Rectangle(0, 0, self.width, self.height)


@dataclass(frozen=True, slots=True)
class Layer:
    """One map over an image.

    Attributes:
        map: the attention.
        square: what its owner saw of the image, in source pixels.
        heat: the map as PNG, one pixel for each patch.
    """

    map: AttentionMap
    square: Rectangle
    heat: bytes


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its maps, all on one scale.

    Attributes:
        picture: of an image that could be read.
        layers: the maps by their numbers among all looks of the report.
        frame: what is in view, in source pixels: the image, and padding where a square has some.
        top: where the scale of the maps ends, in times even attention.
    """

    picture: Picture
    layers: Mapping[int, Layer]
    frame: Rectangle
    top: float


@dataclass(slots=True)
class Pictures:
    """Reads every image once.

    Attributes:
        root: folder of the images.
        side: longest side of a picture, in pixels.
        alpha: colour behind transparent pixels, unless the cache sets it.
        cache: teacher cache of these images; None for no expert.
    """

    root: Path
    side: int
    alpha: Alpha = "black"
    cache: TeacherCache | None = None
    _known: dict[str, Picture] = field(default_factory=dict)

    def of(self, paths: Iterable[str]) -> tuple[Picture, ...]:
        """Return the pictures of a record; one that cannot be read carries the reason."""
        paths = tuple(paths)
        for path in paths:
            if path not in self._known:
                self._known[path] = self._read(path)
        return tuple(self._known[path] for path in paths)

    def every(self) -> tuple[Picture, ...]:
        """Return all pictures that were read, in order of their numbers."""
        return tuple(self._known.values())

    def _read(self, path: str) -> Picture:
        number = len(self._known)
        alpha = self.alpha if self.cache is None else cast(Alpha, self.cache.card.alpha)
        try:
            image = read_image(resolve_image(self.root, path), alpha=alpha)
        except (ManifestError, PixelsError) as error:
            reason = error.reason if isinstance(error, PixelsError) else str(error)
            return Picture(path=path, number=number, remarks=(f"{path} cannot be shown: {reason}",))
        expert, remarks = self._expert(path, image)
        height, width = image.rgb.shape[:2]
        return Picture(
            path=path,
            number=number,
            jpeg=small_jpeg(image.rgb, self.side),
            height=height,
            width=width,
            expert=expert,
            remarks=remarks,
        )

    def _expert(
        self, path: str, image: DecodedImage
    ) -> tuple[AttentionMap | None, tuple[str, ...]]:
        cache = self.cache
        if cache is None:
            return None, ()
        try:
            row = cache.row_of(path)
            cache.check_content(row, image.sha256)
            teacher = cache[row]
        except KeyError:
            return None, (f"{path}: no expert attention: the cache has no row of it",)
        except TeacherCacheError as error:
            return None, (f"{path}: no expert attention: {error}",)
        return AttentionMap(
            label=EXPERT,
            values=teacher.attention,
            valid=teacher.valid,
            grid=cache.card.grid,
            geometry=cast(GeometryName, cache.card.geometry),
        ), ()


def lay_out(picture: Picture, maps: Mapping[int, AttentionMap]) -> Figure:
    """Place the maps of an image over it.

    Units are source pixels, so the picture and every map, whatever its geometry, are placed by the
    same coordinates.

    Args:
        picture: of an image that could be read.
        maps: attention to it, by its number among all looks of the report.
    """
    top = common_top(list(maps.values())) if maps else 0.0
    layers = {
        number: Layer(
            one, square_of(one.geometry, picture.height, picture.width), heat_png(one, top)
        )
        for number, one in maps.items()
    }
    frame = picture.area
    for layer in layers.values():
        frame = frame.around(layer.square)
    return Figure(picture, layers, frame, top)


def small_jpeg(rgb: NDArray[np.uint8], side: int) -> bytes:
    """Return an image [H, W, 3] as JPEG whose longer side is at most `side` pixels."""
    height, width = rgb.shape[:2]
    shrink = min(1.0, side / max(height, width))
    image = Image.fromarray(rgb)
    if shrink < 1:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        image = image.resize(size, Image.Resampling.LANCZOS)
    data = BytesIO()
    image.save(data, "JPEG", quality=_QUALITY, optimize=True)
    return data.getvalue()
