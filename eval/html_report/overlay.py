"""Where the attention maps of an image lie over it, and over the padding around it."""

from collections.abc import Mapping
from dataclasses import dataclass

from .attention_maps import AttentionMap, Rectangle, common_top, heat_png, square_of
from .images import Picture


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
