"""Draw one image of a sample as SVG: the picture, padding around it, attention maps over it."""

import base64
from collections.abc import Iterable, Sequence

from .attention_maps import AttentionMap, Rectangle, common_top, heat_png, square_of
from .images import Picture
from .markup import Markup, joined, tag

HATCH = "padding"
"""Id of the pattern that padding is filled with."""


def figure(picture: Picture, maps: Sequence[AttentionMap], places: Sequence[int]) -> Markup:
    """Return a picture with its maps, all on one scale; each map is hidden until it is chosen.

    User units are source pixels, so the picture and every map, whatever its geometry, are placed
    by the same coordinates. Where a square reaches beyond the image, the padding is shown.

    Args:
        picture: of an image that could be read.
        maps: attention to it.
        places: of each map, its place among all that the report has, which is how it is chosen.
    """
    image = Rectangle(0, 0, picture.width, picture.height)
    squares = [square_of(each.geometry, picture.height, picture.width) for each in maps]
    frame = image
    for square in squares:
        frame = frame.around(square)
    top = common_top(maps) if maps else 0.0
    layers = [
        _layer(shown, square, place, top)
        for shown, square, place in zip(maps, squares, places, strict=True)
    ]
    padding = None
    if frame != image:
        padding = tag("rect", class_="padding", fill=f"url(#{HATCH})", **_box(frame))
    box = " ".join(f"{x:g}" for x in (frame.left, frame.top, frame.width, frame.height))
    drawing = tag(
        "svg",
        padding,
        tag("use", class_="picture", href=f"#{_id(picture)}"),
        layers,
        viewBox=box,
        role="img",
        aria_label=f"image {picture.path}",
    )
    return tag("figure", drawing, tag("figcaption", *_caption(picture, maps, places, top)))


def shared(pictures: Iterable[Picture]) -> Markup:
    """Return what figures refer to: every picture once, however many samples show it.

    The pattern of padding is there too.
    """
    images = [
        tag(
            "image",
            id=_id(picture),
            href=_uri("jpeg", picture.jpeg),
            preserveAspectRatio="none",
            **_box(Rectangle(0, 0, picture.width, picture.height)),
        )
        for picture in pictures
        if picture.jpeg
    ]
    line = tag("path", d="M0 8L8 0", class_="hatch")
    # In shares of the area it fills, since the units of figures are source pixels.
    pattern = tag(
        "pattern",
        line,
        id=HATCH,
        width=0.025,
        height=0.025,
        viewBox="0 0 8 8",
        preserveAspectRatio="xMidYMid slice",
    )
    return tag(
        "svg", tag("defs", pattern, images), width=0, height=0, class_="defs", aria_hidden="true"
    )


def _layer(shown: AttentionMap, square: Rectangle, place: int, top: float) -> Markup:
    heat = tag(
        "image",
        href=_uri("png", heat_png(shown, top)),
        preserveAspectRatio="none",
        **_box(square),
    )
    outline = tag("rect", class_="outline", **_box(square))
    return tag("g", heat, outline, class_=f"look look-{place}", data_look=shown.label)


def _caption(
    picture: Picture, maps: Sequence[AttentionMap], places: Sequence[int], top: float
) -> list[Markup]:
    lines = [tag("span", f"{picture.path}, {picture.width} x {picture.height} px")]
    for shown, place in zip(maps, places, strict=True):
        bar = tag("span", class_="heat", aria_hidden="true")
        text = joined("0 ", bar, f" {top:.1f} times even attention")
        note = "; hatched: padding" if not shown.valid.all() else ""
        lines.append(tag("span", text, note, class_=f"scale look-{place}"))
    return lines


def _box(area: Rectangle) -> dict[str, float]:
    return {"x": area.left, "y": area.top, "width": area.width, "height": area.height}


def _id(picture: Picture) -> str:
    return f"picture-{picture.number}"


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
