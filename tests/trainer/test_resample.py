"""A cache row on an image's own grid, against torch's interpolation and by hand."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medalign.pipeline.geometry import GeometryName, valid_patches
from medalign.teacher_cache.gram.codec import decode, encode
from medalign.teacher_cache.reader import TeacherRow
from medalign.teacher_cache.schema import PatchGrid
from medalign.trainer.data.teacher import Resampled, ResampledRow, resample_row, stack_rows
from medalign.trainer.students.question_attention import Look

SOURCE = PatchGrid(6, 6)
GRIDS = [PatchGrid(3, 5), PatchGrid(9, 4), PatchGrid(1, 12), SOURCE]
LOOK = Look(*(torch.zeros(0) for _ in range(5)))


def row(geometry: GeometryName, height: int, width: int, seed: int = 0) -> TeacherRow:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((SOURCE.size, 8)) + 1
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    attention = rng.random(SOURCE.size).astype(np.float32)
    return TeacherRow(
        attention=attention,
        valid=valid_patches(geometry, height, width, SOURCE),
        source_size=(height, width),
        features=features.astype(np.float16),
    )


def plain(found: TeacherRow | ResampledRow) -> TeacherRow:
    assert isinstance(found, TeacherRow)
    return found


def interpolated(values: Any, target: PatchGrid) -> Any:
    image = torch.from_numpy(values.astype(np.float64)).T.reshape(1, -1, SOURCE.rows, SOURCE.cols)
    size = (target.rows, target.cols)
    found = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
    return found.reshape(values.shape[1], -1).T.numpy()


@pytest.mark.parametrize("target", GRIDS, ids=str)
def test_a_stretched_square_is_interpolated_as_torch_does(target: PatchGrid) -> None:
    given = row("stretch", 30, 50)
    found = plain(resample_row(given, "stretch", SOURCE, target))
    wanted = interpolated(given.features, target)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.allclose(found.features, wanted, atol=1e-3)  # float16
    attention = interpolated(given.attention[:, None], target)[:, 0]
    assert np.allclose(found.attention, attention, atol=1e-6)
    assert found.valid.all()


def test_an_equal_grid_changes_nothing() -> None:
    given = row("stretch", 30, 50)
    found = plain(resample_row(given, "stretch", SOURCE, SOURCE))
    assert np.allclose(found.features, given.features, atol=1e-3)
    assert np.array_equal(found.attention, given.attention)


def test_a_padded_square_gives_the_part_that_shows_the_image() -> None:
    # 20x60 in a 60x60 square of 6x6 patches: rows 2 and 3 are image, the others padding.
    given = row("pad", 20, 60)
    assert np.array_equal(np.flatnonzero(given.valid), np.arange(12, 24))
    poisoned = np.where(given.valid[:, None], given.features, np.nan).astype(np.float16)
    poisoned_row = TeacherRow(
        attention=np.where(given.valid, given.attention, 1e6).astype(np.float32),
        valid=given.valid,
        source_size=given.source_size,
        features=poisoned,
    )
    same = plain(resample_row(poisoned_row, "pad", SOURCE, PatchGrid(2, 6)))
    assert np.array_equal(same.attention, given.attention[12:24])
    assert np.allclose(same.features, given.features[12:24], atol=1e-3)
    assert same.valid.all()
    # One row of tokens: halfway between the two.
    half = plain(resample_row(poisoned_row, "pad", SOURCE, PatchGrid(1, 6)))
    mean = (given.attention[12:18] + given.attention[18:24]) / 2
    assert np.allclose(half.attention, mean, atol=1e-6)
    # Four rows: the outer ones lie at the border, where the outermost patch counts alone.
    fine = plain(resample_row(poisoned_row, "pad", SOURCE, PatchGrid(4, 6)))
    assert np.allclose(fine.attention[:6], given.attention[12:18], atol=1e-6)
    assert np.allclose(
        fine.attention[6:12], 0.75 * given.attention[12:18] + 0.25 * given.attention[18:24]
    )


def test_what_a_crop_threw_away_is_not_valid() -> None:
    # 60x120, the middle square was seen: of 12 columns the first and last three were not.
    found = resample_row(row("crop", 60, 120), "crop", SOURCE, PatchGrid(6, 12))
    columns = found.valid.reshape(6, 12)
    assert columns[:, 3:9].all()
    assert not columns[:, :3].any()
    assert not columns[:, 9:].any()
    # 5 columns over 24 units: the seen part is [6, 18], so 2 and 4 are covered by 0.75 of 4.8.
    coarse = resample_row(row("crop", 60, 120), "crop", SOURCE, PatchGrid(6, 5)).valid
    assert np.array_equal(coarse.reshape(6, 5)[0], [False, True, True, True, False])


@pytest.mark.parametrize("geometry", get_args(GeometryName))
@pytest.mark.parametrize("shape", [(40, 40), (17, 90), (200, 31)])
def test_a_constant_stays_constant_and_something_is_always_valid(
    geometry: GeometryName, shape: tuple[int, int]
) -> None:
    given = row(geometry, *shape)
    flat = TeacherRow(
        attention=np.full(SOURCE.size, 0.25, np.float32),
        valid=given.valid,
        source_size=shape,
        features=np.broadcast_to(given.features[0], given.features.shape),
    )
    for target in GRIDS:
        found = plain(resample_row(flat, geometry, SOURCE, target))
        assert found.valid.any()
        assert np.allclose(found.attention[found.valid], 0.25)
        assert np.allclose(found.features[found.valid], given.features[0], atol=1e-3)


@pytest.mark.parametrize(("geometry", "shape"), [("stretch", (30, 50)), ("pad", (25, 60))])
def test_codec_gram_gives_the_similarities_of_codec_fp16(
    geometry: GeometryName, shape: tuple[int, int]
) -> None:
    given = [row(geometry, *shape, seed=seed) for seed in range(2)]
    coded = []
    for each in given:
        blob, error = encode(each.features.astype(np.float32), SOURCE, SOURCE, each.valid, 1e-4)
        assert error.rms <= 1e-4
        code = decode(blob, SOURCE, SOURCE)
        coded.append(TeacherRow(each.attention, each.valid, each.source_size, code=code))
    targets = (PatchGrid(3, 5), PatchGrid(4, 7))  # the first is padded to the second
    results = [
        stack_rows(
            [resample_row(r, geometry, SOURCE, t) for r, t in zip(rows, targets, strict=True)], LOOK
        )
        for rows in (given, coded)
    ]
    assert isinstance(results[1].spatial, Resampled)
    a, b = results
    assert torch.equal(a.valid, b.valid)
    assert torch.equal(a.attention, b.attention)
    assert a.valid.sum(1).tolist() == [15, 28]
    pairs = a.valid[:, :, None] & a.valid[:, None, :]
    assert torch.allclose(a.gram()[pairs], b.gram()[pairs], atol=3e-3)
    assert (b.gram()[~pairs] == 0).all()
