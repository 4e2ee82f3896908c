"""Are the reasons true for which tensors are left out?"""

from collections.abc import Sequence

import torch

from .errors import ConvertError
from .names import POSITIONS, SOURCE_EMBEDDING, SOURCE_HEAD
from .plan import Unused
from .weights import Weights


def check_claims(weights: Weights, tower: Weights | None, unused: Sequence[Unused]) -> None:
    """Read the tensors whose values must be known ones.

    Raises:
        ConvertError: position ids that do not count up, or a tied head that is another matrix.
    """
    for one in unused:
        held = weights if one.source in weights.tensors else tower
        if held is None:
            continue
        if one.source.endswith(POSITIONS):
            values = held.read(one.source).flatten()
            if not torch.equal(values, torch.arange(len(values), dtype=values.dtype)):
                raise ConvertError(f"{one.stored.file}: {one.source} does not count 0, 1, 2, ...")
        if one.source == SOURCE_HEAD and not torch.equal(
            held.read(SOURCE_HEAD), held.read(SOURCE_EMBEDDING)
        ):
            raise ConvertError(
                f"{one.stored.file}: lm_head.weight differs from the embedding, but config.json "
                "says tie_word_embeddings: true; set it to false if the head was trained"
            )
