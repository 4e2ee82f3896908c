import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional as F

from medalign.teacher_cache.gram.code import reached, resample, resample_matrix, weights
from medalign.teacher_cache.schema import PatchGrid

PAIRS = [
    (PatchGrid(14, 14), PatchGrid(24, 24)),
    (PatchGrid(24, 24), PatchGrid(16, 16)),
    (PatchGrid(3, 7), PatchGrid(5, 2)),
    (PatchGrid(1, 4), PatchGrid(3, 1)),
    (PatchGrid(6, 6), PatchGrid(6, 6)),
]


@pytest.mark.parametrize(("native", "student"), PAIRS)
def test_the_matrix_is_torchs_bilinear_interpolation(native: PatchGrid, student: PatchGrid) -> None:
    values = np.random.default_rng(0).standard_normal((native.size, 6))
    image = torch.from_numpy(values.T.reshape(1, 6, native.rows, native.cols))
    image = F.interpolate(image, (student.rows, student.cols), mode="bilinear", align_corners=False)
    expected = image.flatten(2)[0].T.numpy()
    np.testing.assert_allclose(resample_matrix(native, student) @ values, expected, atol=1e-12)
    np.testing.assert_allclose(resample(values, native, student), expected, atol=1e-12)
    assert resample(values.astype(np.float32), native, student).dtype == np.float32


def test_weights_from_two_to_four() -> None:
    # centres of four at 1/8, 3/8, 5/8, 7/8, of two at 1/4 and 3/4
    assert weights(2, 4).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]


@pytest.mark.parametrize(("native", "student"), PAIRS)
def test_reached_are_the_patches_with_weight(native: PatchGrid, student: PatchGrid) -> None:
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3, 1):
        valid: npt.NDArray[np.bool_] = rng.random(student.size) < share
        expected = (resample_matrix(native, student)[valid] > 0).any(0)
        assert np.array_equal(reached(valid, native, student), expected)
