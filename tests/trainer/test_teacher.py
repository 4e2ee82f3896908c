"""What a batch makes of cache rows: the same similarities, whatever the codec."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from medalign.teacher_cache.gram.code import GramCode
from medalign.teacher_cache.gram.codec import decode, encode
from medalign.teacher_cache.reader import TeacherRow
from medalign.teacher_cache.schema import PatchGrid
from medalign.trainer.data.teacher import Codes, stack_rows
from medalign.trainer.losses import gram_alignment_terms, spatial_alignment_terms
from medalign.trainer.students.question_attention import Look

LOOK = Look(*(torch.zeros(0) for _ in range(5)))
SMALL, LARGE = PatchGrid(4, 4), PatchGrid(6, 6)
ERROR = 1e-4


def smooth(grid: PatchGrid, width: int, seed: int) -> npt.NDArray[np.float32]:
    """Patches [M, b] that change slowly over the image, as an expert's do."""
    rng = np.random.default_rng(seed)
    rows, cols = np.divmod(np.arange(grid.size), grid.cols)
    waves = [
        np.cos(a * rows / grid.rows + b * cols / grid.cols) for a in range(3) for b in range(3)
    ]
    noise = 0.05 * rng.standard_normal((grid.size, width))
    patches = np.stack(waves, axis=1) @ rng.standard_normal((9, width)) + noise
    return patches.astype(np.float32)


def coded(native: PatchGrid, student: PatchGrid, valid: npt.NDArray[np.bool_], k: int) -> GramCode:
    blob, error = encode(smooth(native, 12 + k, k), native, student, valid, ERROR)
    assert error.rms <= ERROR
    return decode(blob, native, student)


def row(code: GramCode, valid: npt.NDArray[np.bool_]) -> TeacherRow:
    attention = np.full(len(valid), 1 / len(valid), np.float32)
    return TeacherRow(attention=attention, valid=valid, source_size=(8, 8), code=code)


def valids(grid: PatchGrid) -> Sequence[npt.NDArray[np.bool_]]:
    """No padding, and padding above and below."""
    padded = np.ones((grid.rows, grid.cols), np.bool_)
    padded[[0, -1]] = False
    return np.ones(grid.size, np.bool_), padded.ravel()


@pytest.mark.parametrize(("native", "student"), [(LARGE, LARGE), (SMALL, LARGE), (LARGE, SMALL)])
def test_a_batch_decodes_codes_as_the_cache_does(native: PatchGrid, student: PatchGrid) -> None:
    masks = [*valids(student), *valids(student)]
    codes = [coded(native, student, valid, k) for k, valid in enumerate(masks)]
    teacher = stack_rows([row(*each) for each in zip(codes, masks, strict=True)], LOOK)
    assert isinstance(teacher.spatial, Codes)
    assert teacher.spatial.codes.dtype == torch.int16  # the batch carries codes, not Grams
    found = teacher.gram().numpy()
    for gram, code, valid in zip(found, codes, masks, strict=True):
        pairs = np.ix_(valid, valid)
        assert np.allclose(gram[pairs], code.gram()[pairs], atol=1e-6)
        assert (gram[~valid] == 0).all()
        assert (gram[:, ~valid] == 0).all()
        assert (np.diagonal(gram)[valid] == 1).all()


@pytest.mark.parametrize("padded", [False, True])
def test_codec_gram_gives_the_loss_of_codec_fp16(padded: bool) -> None:
    valid = valids(LARGE)[padded]
    patches = smooth(LARGE, 16, 5)
    unit = patches / np.linalg.norm(patches, axis=1, keepdims=True)
    blob, error = encode(patches, LARGE, LARGE, valid, ERROR)
    shared: dict[str, Any] = {
        "attention": np.full(36, 0.01, np.float32),
        "valid": valid,
        "source_size": (8, 8),
    }
    plain = stack_rows([TeacherRow(features=unit.astype(np.float16), **shared)], LOOK)
    compact = stack_rows([TeacherRow(code=decode(blob, LARGE, LARGE), **shared)], LOOK)
    student = torch.randn(1, 36, 7, generator=torch.Generator().manual_seed(0))
    a, b = (
        gram_alignment_terms(student, teacher.gram(), teacher.valid).item()
        for teacher in (plain, compact)
    )
    exact = spatial_alignment_terms(
        student, torch.from_numpy(unit)[None], torch.from_numpy(valid[None])
    )
    assert a == pytest.approx(exact.item(), rel=1e-3)
    assert abs(b - exact.item()) <= 2 * exact.item() ** 0.5 * error.rms + error.rms**2 + 1e-6
