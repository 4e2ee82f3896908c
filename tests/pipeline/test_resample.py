import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medalign.pipeline.resample import ExpertOutput, to_grid
from medalign.teacher_cache.schema import PatchGrid


def numpy_bilinear(
    image: NDArray[np.float64], source: PatchGrid, target: PatchGrid
) -> NDArray[np.float64]:
    """Bilinear on pixel centres with clamped edges, by the definition; [M, C] -> [N, C]."""

    def along(length: int, wanted: int) -> NDArray[np.float64]:
        matrix = np.zeros((wanted, length))
        for i in range(wanted):
            x = max((i + 0.5) * length / wanted - 0.5, 0)
            low = min(int(x), length - 1)
            high = min(low + 1, length - 1)
            matrix[i, low] += 1 - (x - low)
            matrix[i, high] += x - low
        return matrix

    return np.kron(along(source.rows, target.rows), along(source.cols, target.cols)) @ image


@pytest.mark.parametrize("normalise_before", [True, False])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (PatchGrid(14, 14), PatchGrid(24, 24)),
        (PatchGrid(16, 16), PatchGrid(12, 12)),
        (PatchGrid(3, 5), PatchGrid(4, 2)),
    ],
)
def test_resampling_equals_the_definition(
    source: PatchGrid, target: PatchGrid, normalise_before: bool
) -> None:
    draw = np.random.default_rng(2)
    patches = draw.normal(size=(source.size, 8)) * draw.uniform(0.1, 9, size=(source.size, 1))
    attention = draw.dirichlet(np.ones(source.size + 1))[1:]
    output = ExpertOutput(
        torch.tensor(patches[None], dtype=torch.float32),
        torch.tensor(attention[None], dtype=torch.float32),
    )
    found, row = to_grid(output, source, target, normalise_before=normalise_before)
    if normalise_before:
        patches = patches / np.linalg.norm(patches, axis=1, keepdims=True)
    wanted = numpy_bilinear(patches, source, target)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=1e-5)
    row_wanted = numpy_bilinear(attention[:, None], source, target)[:, 0]
    np.testing.assert_allclose(row[0].numpy(), row_wanted, atol=1e-7)


def test_equal_grids_only_normalise() -> None:
    patches = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    attention = torch.rand(2, 6, generator=torch.Generator().manual_seed(4))
    grid = PatchGrid(2, 3)
    for before in (True, False):
        found, row = to_grid(ExpertOutput(patches, attention), grid, grid, normalise_before=before)
        torch.testing.assert_close(found, F.normalize(patches.float(), dim=-1))
        assert torch.equal(row, attention)


def test_the_order_of_normalising_changes_the_numbers() -> None:
    patches = torch.tensor([[[9.0, 0.0], [0.0, 1.0]]])
    output = ExpertOutput(patches, torch.ones(1, 2))
    source, target = PatchGrid(1, 2), PatchGrid(1, 3)  # the middle of three: half of each
    first, _ = to_grid(output, source, target, normalise_before=True)
    late, _ = to_grid(output, source, target, normalise_before=False)
    torch.testing.assert_close(first[0, 1], torch.tensor([0.5, 0.5]) * 2**0.5)
    torch.testing.assert_close(late[0, 1], torch.tensor([9.0, 1.0]) / 82**0.5)
