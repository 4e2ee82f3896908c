"""The two forms of the compact codec, each for what it claims."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from medalign.teacher_cache.gram.code import GramTarget
from medalign.teacher_cache.gram.codec import decode, encode
from medalign.teacher_cache.gram.factors import Spectrum, factor_scale, finest_delta, triangle
from medalign.teacher_cache.schema import PatchGrid

GRID = PatchGrid(12, 12)
N = GRID.size
ALL = np.ones(N, bool)
FACTORS, TRIANGLE = 1, 2

Floats = npt.NDArray[Any]


def features(width: int, seed: int = 0) -> Floats:
    """Draw features whose variances fall as 1 / k."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((N, width)) / np.sqrt(1 + np.arange(width))).astype(np.float32)


def target_of(patches: Floats, allowed: float = 1e-3) -> GramTarget:
    return GramTarget.of(patches, GRID, GRID, ALL, allowed)


def test_the_smaller_form_is_taken() -> None:
    rng = np.random.default_rng(0)
    few = (rng.standard_normal((N, 3)) @ rng.standard_normal((3, 50))).astype(np.float32)
    assert encode(few, GRID, GRID, ALL, 1e-3)[0][1] == FACTORS
    assert encode(features(300), GRID, GRID, ALL, 1e-4)[0][1] == TRIANGLE


def test_what_each_patch_has_for_itself_is_not_coded() -> None:
    # five directions that all share and one of its own for each patch: the Gram is of full rank,
    # but its pairs are those of a matrix of rank five
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((N, 5))
    patches = np.hstack([shared, np.eye(N)]).astype(np.float32)
    blob, error = encode(patches, GRID, GRID, ALL, 2e-3)
    assert np.linalg.matrix_rank(patches) == N
    assert blob[1] == FACTORS
    assert len(decode(blob, GRID, GRID).scale) <= 10
    assert error.rms <= 2e-3


def test_components_mend_each_others_errors() -> None:
    target = target_of(features(300))
    spectrum = Spectrum.of(target, 1e-3)
    mended = spectrum.quantise(3e-3)
    assert mended is not None
    exact = spectrum.vectors * np.sqrt(spectrum.values)
    plain = np.rint(exact[:, : len(mended.codes)] / mended.scale).T
    errors = [target.error(target.code(codes, mended.scale)).rms for codes in (mended.codes, plain)]
    assert errors[0] < 0.95 * errors[1]


def test_steps_go_as_the_root_of_the_eigenvalue() -> None:
    spectrum = Spectrum.of(target_of(features(300)), 1e-3)
    factors = spectrum.quantise(3e-3)
    assert factors is not None
    scale = factor_scale(factors.base, factors.classes)
    product = scale * np.sqrt(spectrum.values[: len(scale)])
    # one class is half an octave of eigenvalues
    np.testing.assert_allclose(product, 3e-3, rtol=2**0.125 - 1 + 1e-6)


def test_codes_that_16_bits_do_not_hold_are_not_made() -> None:
    same = np.ones((N, 4), np.float32)
    target = target_of(same)
    assert Spectrum.of(target, 1e-3).quantise(1e-5) is None
    finest = finest_delta(N)
    assert triangle(target, 0.99 * finest) is None
    form = triangle(target, finest)
    assert form is not None
    assert 32_000 < form.pivots[0] <= 32_767


@pytest.mark.parametrize("delta", [1e-4, 1e-3])
def test_the_triangles_errors_do_not_add_up(delta: float) -> None:
    target = target_of(features(300))
    form = triangle(target, delta)
    assert form is not None
    error = target.error(target.code(form.codes, form.scale))
    # one rounding a pair: uniform in a step, a little more where steps are rounded down
    assert error.rms == pytest.approx(delta / np.sqrt(12), rel=0.05)
    assert error.max < 0.56 * delta


def test_the_triangle_takes_the_least_predictable_patch_next() -> None:
    form = triangle(target_of(features(300)), 1e-3)
    assert form is not None
    assert np.array_equal(np.sort(form.order), np.arange(N))
    assert (np.diff(form.pivots.astype(int)) <= 0).all()
    for k, pivot in enumerate(form.order[: len(form.codes)]):
        assert form.codes[k, pivot] == form.pivots[k]
        assert not form.codes[k, form.order[:k]].any()
