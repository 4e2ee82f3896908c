"""What an expert gives for a batch, and how it is brought to the student's patch grid."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..teacher_cache.schema import PatchGrid

INTERPOLATION = "bilinear, align_corners=False"


@dataclass(frozen=True, slots=True)
class ExpertOutput:
    """What an expert gives for a batch, on its own patch grid.

    Attributes:
        patches: features [B, M, b] in the dtype the expert computes in.
        attention: probabilities [B, M], float32: the [cls] query of the last block, mean over
            heads, without the [cls] column, so a row sums to less than 1.
    """

    patches: Tensor
    attention: Tensor


def resample(patches: Tensor, source: PatchGrid, target: PatchGrid) -> Tensor:
    """Bring patches [B, M, D] on the source grid to [B, N, D] on the target grid.

    Bilinear with `align_corners=False`: both grids cover the same square, and a patch stands
    for its centre. Equal grids return the input itself.
    """
    if source == target:
        return patches
    image = patches.transpose(1, 2).reshape(len(patches), -1, source.rows, source.cols)
    image = F.interpolate(
        image, size=(target.rows, target.cols), mode="bilinear", align_corners=False
    )
    return image.flatten(2).transpose(1, 2)


def to_grid(
    output: ExpertOutput, source: PatchGrid, target: PatchGrid, *, normalise_before: bool
) -> tuple[Tensor, Tensor]:
    """Bring what an expert gives to the student's grid (Eq. 2), as unit vectors.

    The order of normalising and interpolating changes the numbers and differs between
    experts in the authors' code, so the expert's card carries it.

    Args:
        output: patches [B, M, b] and attention [B, M] on the source grid.
        source: the expert's grid, M patches.
        target: the student's grid, N patches.
        normalise_before: L2-normalise patches before interpolation as well as after.

    Returns:
        Patches [B, N, b], each of length 1, and attention [B, N], both float32. Attention is
        interpolated as it is: values stay probabilities of single patches, so their sum grows
        with the number of patches.
    """
    patches = output.patches.float()
    if normalise_before:
        patches = F.normalize(patches, dim=-1)
    patches = F.normalize(resample(patches, source, target), dim=-1)
    attention = resample(output.attention.float().unsqueeze(-1), source, target).squeeze(-1)
    return patches, attention
