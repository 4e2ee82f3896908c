from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from medalign.pipeline import geometry as resize
from medalign.pipeline.geometry import (
    CLIP_MEAN,
    CLIP_STD,
    GEOMETRIES,
    GeometryName,
    apply_geometry,
    mapping,
    mask_patches,
    mean_colour,
    normalise,
    valid_patches,
)
from medalign.teacher_cache.schema import PatchGrid

SHAPES = [(60, 90), (91, 60), (75, 75), (61, 96), (64, 97), (1, 1), (1, 40), (33, 2), (400, 500)]
GRID = PatchGrid(24, 24)
SIDES = st.integers(1, 400)
GEOMETRY = st.sampled_from(GEOMETRIES)
GRIDS = st.builds(PatchGrid, st.integers(1, 27), st.integers(1, 27))


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processed(processor: Any, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0]
    return np.asarray(values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [336, 224])
def test_pad_gives_the_bits_of_the_llava_processor(shape: tuple[int, int], size: int) -> None:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    rgb = noise(*shape)
    options: dict[str, Any] = {
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    square = apply_geometry(rgb, "pad", size)
    as_is = LlavaImageProcessorPil(do_pad=True, do_rescale=False, do_normalize=False, **options)
    # Its padding colour hangs on image_mean, which do_normalize=False does not take away.
    np.testing.assert_array_equal(square.transpose(2, 0, 1), processed(as_is, rgb))
    whole = LlavaImageProcessorPil(do_pad=True, **options)
    np.testing.assert_array_equal(normalise(square), processed(whole, rgb))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [336, 224])
def test_crop_gives_the_bits_of_the_clip_processor(shape: tuple[int, int], size: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    rgb = noise(*shape)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    square = apply_geometry(rgb, "crop", size)
    np.testing.assert_array_equal(normalise(square), processed(processor, rgb))


@pytest.mark.parametrize("shape", SHAPES)
def test_pad_equals_expand2square_and_resize(shape: tuple[int, int]) -> None:
    rgb = noise(*shape, seed=1)
    height, width = shape
    side = max(shape)
    image = Image.new("RGB", (side, side), (10, 200, 30))  # LLaVA's expand2square
    image.paste(Image.fromarray(rgb), ((side - width) // 2, (side - height) // 2))
    expected = np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(apply_geometry(rgb, "pad", 56, (10, 200, 30)), expected)


def test_padding_in_strips_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = noise(201, 47)
    whole = apply_geometry(rgb, "pad", 56)
    monkeypatch.setattr(resize, "_STRIP_PIXELS", 201 * 7)
    np.testing.assert_array_equal(apply_geometry(rgb, "pad", 56), whole)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 700)])
def test_cropping_extreme_shapes_differs_by_one_level_at_most(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = noise(*shape)
    thrifty = apply_geometry(rgb, "crop", 16)
    monkeypatch.setattr(resize, "_LONGEST_ASPECT", 10_000)
    whole = apply_geometry(rgb, "crop", 16)
    assert np.abs(thrifty.astype(int) - whole).max() <= 1


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (1, 65_535)])
def test_extreme_shapes_give_a_writable_square(
    geometry: GeometryName, shape: tuple[int, int]
) -> None:
    square = apply_geometry(noise(*shape), geometry, 28)
    assert square.shape == (28, 28, 3)
    assert square.dtype == np.uint8
    square[0, 0] = 0  # torch.from_numpy warns about arrays that are not writable


def test_stretch_is_one_resize() -> None:
    rgb = noise(40, 90)
    expected = Image.fromarray(rgb).resize((28, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(apply_geometry(rgb, "stretch", 28), np.asarray(expected))


def test_normalise_is_float64_arithmetic_to_float32_precision() -> None:
    rgb = noise(5, 5)
    expected = (rgb.astype(np.float64) / 255 - CLIP_MEAN) / CLIP_STD
    result = normalise(rgb)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)


def test_mean_colour_is_what_llava_pads_with() -> None:
    # 0.48145466 * 255 = 122.77, 0.4578275 * 255 = 116.75, 0.40821073 * 255 = 104.09, cut off
    assert mean_colour() == (122, 116, 104)
    corner = apply_geometry(np.zeros((2, 20, 3), np.uint8), "pad", 20)[0, 0]
    assert tuple(corner) == (122, 116, 104)


def patch_means(rgb: NDArray[np.uint8], geometry: GeometryName, grid: PatchGrid) -> Any:
    """The brightness of each patch of what a tower sees: 336 px of 14, or 224 px of 16."""
    size = {24: 336, 14: 224}[grid.cols]
    edge = size // grid.cols
    square = apply_geometry(rgb, geometry, size, (0, 0, 0))[..., 0]
    return square.reshape(grid.rows, edge, grid.cols, edge).mean((1, 3)).ravel()


@pytest.mark.parametrize("shape", [(300, 560), (560, 300), (336, 336), (301, 555), (703, 512)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("grid", [PatchGrid(24, 24), PatchGrid(14, 14)], ids=str)
def test_a_bright_square_lights_the_patch_that_the_mapping_predicts(
    shape: tuple[int, int], geometry: GeometryName, grid: PatchGrid
) -> None:
    height, width = shape
    where = mapping(geometry, height, width)
    rng = np.random.default_rng(7)
    for _ in range(20):
        y, x = int(rng.integers(2, height - 2)), int(rng.integers(2, width - 2))
        patch = where.patch_at(x, y, grid)
        if patch is None:
            continue
        box = where.patch_box(patch, grid)
        if min(x - box.left, box.right - x, y - box.top, box.bottom - y) < 4:
            continue  # it would light two patches
        rgb = np.zeros((height, width, 3), np.uint8)
        rgb[y - 2 : y + 2, x - 2 : x + 2] = 255
        assert patch_means(rgb, geometry, grid).argmax() == patch


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (500, 500), (333, 640)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_both_towers_light_the_same_place(shape: tuple[int, int], geometry: GeometryName) -> None:
    """Paint exactly one patch of the student's grid; both towers' brightest patch shows it."""
    where = mapping(geometry, *shape)
    student, expert = PatchGrid(24, 24), PatchGrid(14, 14)
    for patch in np.flatnonzero(valid_patches(geometry, *shape, student))[::37]:
        box = where.patch_box(int(patch), student)
        rgb = np.zeros((*shape, 3), np.uint8)
        rgb[round(box.top) : round(box.bottom), round(box.left) : round(box.right)] = 255
        lit = {grid: patch_means(rgb, geometry, grid) for grid in (student, expert)}
        assert lit[student].argmax() == patch
        other = where.patch_box(int(lit[expert].argmax()), expert)
        assert min(other.right, box.right) > max(other.left, box.left)
        assert min(other.bottom, box.bottom) > max(other.top, box.top)


@given(GEOMETRY, SIDES, SIDES, st.floats(-50, 450), st.floats(-50, 450))
@settings(deadline=None)
def test_a_mapping_undoes_itself(
    geometry: GeometryName, height: int, width: int, x: float, y: float
) -> None:
    where = mapping(geometry, height, width)
    back = where.to_source(*where.to_square(x, y))
    np.testing.assert_allclose(back, (x, y), atol=1e-9)


@given(SIDES, SIDES)
@settings(deadline=None)
def test_pad_covers_the_share_of_the_square_that_is_image(height: int, width: int) -> None:
    box = mapping("pad", height, width).covered()
    area = (box.right - box.left) * (box.bottom - box.top)
    assert area == pytest.approx(height * width / max(height, width) ** 2)


@given(st.sampled_from(["crop", "stretch"]), SIDES, SIDES, GRIDS)
@settings(deadline=None)
def test_only_pad_leaves_anything_uncovered(
    geometry: GeometryName, height: int, width: int, grid: PatchGrid
) -> None:
    box = mapping(geometry, height, width).covered()
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((0, 0, 1, 1))
    assert valid_patches(geometry, height, width, grid).all()


@given(SIDES, SIDES)
@settings(deadline=None)
def test_valid_patches_of_a_turned_image_are_turned(height: int, width: int) -> None:
    valid = valid_patches("pad", height, width, GRID).reshape(24, 24)
    turned = valid_patches("pad", width, height, GRID).reshape(24, 24)
    np.testing.assert_array_equal(valid.T, turned)


@given(st.integers(1, 200), st.integers(1, 200))
@settings(deadline=None)
def test_even_padding_is_symmetric(half: int, other: int) -> None:
    valid = valid_patches("pad", 2 * half, 2 * other, GRID).reshape(24, 24)
    np.testing.assert_array_equal(valid, valid[::-1, ::-1])


@given(GEOMETRY, SIDES, SIDES, GRIDS)
@settings(deadline=None)
def test_every_image_has_a_valid_patch(
    geometry: GeometryName, height: int, width: int, grid: PatchGrid
) -> None:
    valid = valid_patches(geometry, height, width, grid)
    assert valid.shape == (grid.size,)
    assert valid.dtype == np.bool_
    assert valid.any()


def test_valid_patches_of_known_images() -> None:
    # 480 x 640: 80 rows of padding above, a patch is 640 / 24 = 26.67 rows, so 3 patches exactly.
    rows = valid_patches("pad", 480, 640, GRID).reshape(24, 24)
    assert rows.all(axis=1).tolist() == [3 <= row < 21 for row in range(24)]
    # 500 x 640: (640 - 500) / 2 = 70 rows, 2.625 patches: the third is 0.375 image, which is less
    # than half, so it stays out.
    rows = valid_patches("pad", 500, 640, GRID).reshape(24, 24)
    assert rows[:, 0].tolist() == [3 <= row < 21 for row in range(24)]
    # 12 x 24 on 8 x 8: 6 rows of padding are 2 patches. 13 x 24: (24 - 13) // 2 = 5 rows above and
    # 6 below; patch 1 (rows 3 to 5) is 1/3 image. 15 x 24: 4 above, patch 1 is 2/3 image.
    for height, first, last in ((12, 2, 5), (13, 2, 5), (15, 1, 5)):
        valid = valid_patches("pad", height, 24, PatchGrid(8, 8)).reshape(8, 8)
        assert valid[:, 0].tolist() == [first <= row <= last for row in range(8)]


def test_exactly_half_a_patch_counts() -> None:
    # 8 x 24 on 3 x 3: 8 rows above, patch 0 has none, patch 1 all. On 2 x 2: 4 of 12 rows each.
    # 12 x 24 on 2 x 2: 6 rows above, 6 of 12 rows of either patch are image: exactly half.
    assert valid_patches("pad", 12, 24, PatchGrid(2, 2)).all()
    # 14 x 28 on 4 x 4: 7 rows above, a patch is 7 rows.
    valid = valid_patches("pad", 14, 28, PatchGrid(4, 4)).reshape(4, 4)
    assert valid[:, 0].tolist() == [False, True, True, False]


def test_an_image_thinner_than_half_a_patch_keeps_its_row() -> None:
    # 1 x 5000: row 2499 of the square; patches are 208.3 rows, so row 11 of 24.
    valid = valid_patches("pad", 1, 5000, GRID).reshape(24, 24)
    assert valid[11].all()
    assert valid.sum() == 24


@given(GEOMETRY, st.integers(1, 60), st.integers(1, 60), GRIDS, st.integers(0, 99))
@settings(deadline=None)
def test_mask_patches_sum_to_the_area_of_the_mask(
    geometry: GeometryName, height: int, width: int, grid: PatchGrid, seed: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    where = mapping(geometry, height, width)
    seen = mask.astype(float)
    if geometry == "crop":  # weight of every pixel: how much of it lies in the square
        (x0, x1), (y0, y1) = where.to_source([0, 1], [0, 1])
        x, y = np.arange(width), np.arange(height)
        seen = seen * np.clip(np.minimum(x + 1, x1) - np.maximum(x, x0), 0, 1)
        seen = seen * np.clip(np.minimum(y + 1, y1) - np.maximum(y, y0), 0, 1)[:, None]
    area = seen.sum() * where.x_scale * where.y_scale
    assert mask_patches(mask, geometry, grid).mean() == pytest.approx(area, abs=1e-5)


@given(GEOMETRY, SIDES, SIDES, GRIDS)
@settings(deadline=None)
def test_a_full_mask_covers_what_is_image_and_an_empty_one_nothing(
    geometry: GeometryName, height: int, width: int, grid: PatchGrid
) -> None:
    full = mask_patches(np.ones((height, width)), geometry, grid)
    box = mapping(geometry, height, width).covered()
    u, v = np.arange(grid.cols + 1) / grid.cols, np.arange(grid.rows + 1) / grid.rows
    across = np.clip(np.minimum(u[1:], box.right) - np.maximum(u[:-1], box.left), 0, 1) * grid.cols
    down = np.clip(np.minimum(v[1:], box.bottom) - np.maximum(v[:-1], box.top), 0, 1) * grid.rows
    np.testing.assert_allclose(full, np.outer(down, across).ravel(), atol=1e-5)
    assert not mask_patches(np.zeros((height, width), bool), geometry, grid).any()
    assert full.dtype == np.float32


def test_mask_patches_of_a_known_mask() -> None:
    # A 4 x 8 image in an 8 x 8 square has 2 rows of padding; patches are 2 x 2 pixels.
    mask = np.zeros((4, 8), bool)
    mask[0:2, 2:4] = True  # all of patch (1, 1)
    mask[2, 4] = True  # a quarter of patch (2, 2)
    share = mask_patches(mask, "pad", PatchGrid(4, 4)).reshape(4, 4)
    assert share[1, 1] == 1
    assert share[2, 2] == 0.25
    assert share.sum() == 1.25


@given(GEOMETRY, SIDES, SIDES, GRIDS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_middle_of_a_patch_lies_in_the_patch(
    geometry: GeometryName, height: int, width: int, grid: PatchGrid, random: Any
) -> None:
    where = mapping(geometry, height, width)
    patch = random.randrange(grid.size)
    box = where.patch_box(patch, grid)
    middle = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    assert where.patch_at(*middle, grid) == patch


def test_points_outside_the_square_have_no_patch() -> None:
    where = mapping("crop", 100, 200)
    assert where.patch_at(10, 50, GRID) is None
    assert where.patch_at(100, 50, GRID) == 12 * 24 + 12


def test_wrong_arguments_are_named() -> None:
    unknown: Any = "zoom"
    floats: Any = np.zeros((2, 2, 3))
    with pytest.raises(ValueError, match='unknown geometry "zoom", known are pad, crop, stretch'):
        mapping(unknown, 2, 2)
    with pytest.raises(ValueError, match="at least 1 pixel, got 0 x 3"):
        valid_patches("pad", 0, 3, GRID)
    with pytest.raises(ValueError, match=r"got float64 \[2, 2, 3\]"):
        apply_geometry(floats, "pad", 14)
    with pytest.raises(ValueError, match="a size of at least 1"):
        apply_geometry(np.zeros((2, 2, 3), np.uint8), "pad", 0)
    with pytest.raises(ValueError, match="0 to 255; compare it with a threshold"):
        mask_patches(np.array([[0.0, 255.0]]), "pad", GRID)
    with pytest.raises(ValueError, match=r"\[H, W\], got \[2, 2, 3\]"):
        mask_patches(np.zeros((2, 2, 3)), "pad", GRID)
