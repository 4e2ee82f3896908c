import base64
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medalign.eval.html_report.attention_maps import AttentionMap, common_top, heat_png, square_of
from medalign.eval.html_report.images import Picture, lay_out, small_jpeg
from medalign.eval.html_report.page import environment
from medalign.pipeline.geometry import GEOMETRIES, GeometryName, apply_geometry, valid_patches
from medalign.teacher_cache.schema import PatchGrid

GRID = PatchGrid(8, 8)
Parse = Callable[[str], Any]
WIDE, TALL = (60, 120), (150, 50)


def bright(height: int, width: int, top: int, left: int, side: int) -> NDArray[np.uint8]:
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[top : top + side, left : left + side] = 255
    return rgb


def map_of(rgb: NDArray[np.uint8], geometry: GeometryName) -> AttentionMap:
    """Attention that goes where the square that a tower sees is bright."""
    seen = apply_geometry(rgb, geometry, 64, (0, 0, 0))[..., 0].astype(float)
    values = [seen[8 * r : 8 * r + 8, 8 * c : 8 * c + 8].mean() for r in range(8) for c in range(8)]
    valid = valid_patches(geometry, rgb.shape[0], rgb.shape[1], GRID)
    return AttentionMap(
        label="x", values=np.array(values), valid=valid, grid=GRID, geometry=geometry
    )


def picture_of(rgb: NDArray[np.uint8], side: int = 448) -> Picture:
    height, width = rgb.shape[:2]
    return Picture(path="x", number=3, jpeg=small_jpeg(rgb, side), height=height, width=width)


def shared(pictures: list[Picture]) -> str:
    return drawn("{{ shared(pictures) }}", pictures=pictures)


def figure(picture: Picture, attention: AttentionMap) -> str:
    return drawn("{{ figure(drawing) }}", drawing=lay_out(picture, {0: attention}))


def drawn(template: str, **values: object) -> str:
    macros = '{% from "figure.html" import figure, shared %}'
    return str(environment().from_string(macros + template).render(**values))


def pixels(uri: str) -> NDArray[np.uint8]:
    head, _, data = uri.partition("base64,")
    assert head.startswith("data:image/")
    return np.asarray(Image.open(BytesIO(base64.b64decode(data))))


def box(element: Any) -> tuple[float, ...]:
    return tuple(float(element.attributes[key]) for key in ("x", "y", "width", "height"))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("shape", "at"), [(WIDE, (22, 66)), (TALL, (84, 18)), ((64, 64), (8, 40))])
def test_a_bright_square_lights_up_where_it_is(
    parse: Parse, geometry: GeometryName, shape: tuple[int, int], at: tuple[int, int]
) -> None:
    side = 14
    rgb = bright(*shape, *at, side)
    page = parse(shared([picture_of(rgb)]) + figure(picture_of(rgb), map_of(rgb, geometry)))
    [layer] = page.all("g", class_="look-0")
    [heat] = layer.all("image")
    left, top, width, height = box(heat)
    cells = pixels(heat.attributes["href"])[..., 3].astype(float)  # opacity grows with attention
    assert cells.shape == (8, 8)
    row, col = (float(each) for each in np.argwhere(cells == cells.max()).mean(axis=0))
    x, y = left + (col + 0.5) * width / 8, top + (row + 0.5) * height / 8
    # The middle of the bright square, within half a patch.
    assert abs(x - (at[1] + side / 2)) <= width / 16
    assert abs(y - (at[0] + side / 2)) <= height / 16
    # The picture lies in the same units, and is bright at that place.
    [shown] = page.all("image", id="picture-3")
    assert box(shown) == (0, 0, shape[1], shape[0])
    jpeg = pixels(shown.attributes["href"])
    assert jpeg.shape[:2] == shape
    assert jpeg[int(y), int(x)].min() > 200
    assert [use.attributes["href"] for use in page.all("use")] == ["#picture-3"]


def test_squares_lie_where_the_geometry_says() -> None:
    # 120 x 60: padded above and below by 30; cropped to the middle 60 columns.
    wide = {g: square_of(g, 60, 120) for g in GEOMETRIES}
    found = {g: (s.left, s.top, s.width, s.height) for g, s in wide.items()}
    assert found == {"pad": (0, -30, 120, 120), "crop": (30, 0, 60, 60), "stretch": (0, 0, 120, 60)}


def test_padding_is_in_view_hatched_and_without_colour(parse: Parse) -> None:
    rgb = bright(60, 120, 22, 66, 14)
    page = parse(figure(picture_of(rgb), map_of(rgb, "pad")))
    [drawing] = page.all("svg", role="img")
    assert drawing.attributes["viewbox"] == "0 -30 120 120"
    [padding] = drawing.all("rect", class_="padding")
    assert (box(padding), padding.attributes["fill"]) == ((0, -30, 120, 120), "url(#padding)")
    [heat] = page.all("image")
    opacity = pixels(heat.attributes["href"])[..., 3]
    assert not opacity[[0, 1, 6, 7]].any()
    assert opacity[2:6].all()
    assert "hatched: padding" in page.text
    plain = parse(figure(picture_of(rgb), map_of(rgb, "crop")))
    assert not list(plain.all("rect", class_="padding"))
    assert "hatched" not in plain.text
    assert [p.attributes["id"] for p in parse(shared([])).all("pattern")] == ["padding"]


def test_all_maps_of_an_image_have_one_scale() -> None:
    values = np.array([1.0, 2, 3, 100, 2, 2, 2, 100])
    valid = np.arange(8) % 4 < 3
    grid = PatchGrid(2, 4)
    strong, even = (
        AttentionMap(label="x", values=v, valid=valid, grid=grid, geometry="pad")
        for v in (values * 7, np.ones(8))
    )
    # Over the mean of the six image patches, 2; the 99th percentile of 1/2, 1 (ten times), 3/2.
    assert common_top([strong, even]) == 2.0
    spread = AttentionMap(
        label="x",
        values=np.r_[np.zeros(99), 100.0],
        valid=np.ones(100, bool),
        grid=PatchGrid(10, 10),
        geometry="pad",
    )
    # 99 zeros and 100 times even: the 99th percentile lies 1% of the way to the last.
    assert common_top([spread]) == pytest.approx(2.0)
    png = np.asarray(Image.open(BytesIO(heat_png(even, 2.0))))
    assert png.shape == (2, 4, 4)
    assert len({tuple(cell) for cell in png[:, :3].reshape(-1, 4)}) == 1
    assert not png[:, 3].any()


def test_large_images_are_made_small_and_small_ones_kept() -> None:
    with Image.open(BytesIO(small_jpeg(np.zeros((100, 400, 3), np.uint8), 200))) as image:
        assert image.size == (200, 50)
    with Image.open(BytesIO(small_jpeg(np.zeros((1, 4000, 3), np.uint8), 200))) as image:
        assert image.size == (200, 1)
    with Image.open(BytesIO(small_jpeg(np.zeros((9, 7, 3), np.uint8), 200))) as image:
        assert (image.size, image.format) == ((7, 9), "JPEG")
