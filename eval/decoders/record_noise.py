"""Randomness that belongs to a record and a seed, whatever else is in the batch."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


def generators(ids: Sequence[str], seed: int, purpose: str = "") -> list[torch.Generator]:
    """One generator per record, on the CPU: a GPU would draw other numbers.

    Args:
        ids: of the records.
        seed: of the run.
        purpose: other purposes draw other numbers; none for the tokens themselves.
    """
    made = []
    for record in ids:
        key = f"{seed}/{record}/{purpose}" if purpose else f"{seed}/{record}"
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
        made.append(generator)
    return made


class PerRecordNoise(LogitsProcessor):
    """Turn the argmax into a sample: the Gumbel-max trick with a generator per record.

    argmax(log p + G) with independent standard Gumbel noise G is distributed as p. Sampling from
    one generator for the whole batch would make an answer depend on its neighbours, and a resumed
    run differ from an uninterrupted one.
    """

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        self._generators = generators(ids, seed)

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add noise to log-probabilities [B, V]."""
        noise = torch.stack(
            [
                torch.rand(scores.shape[1], generator=g, dtype=torch.float64)
                for g in self._generators
            ]
        )
        tiny = torch.finfo(torch.float64).tiny
        gumbel = -(-noise.clamp_min(tiny).log()).log()
        return scores.log_softmax(-1) + gumbel.to(scores)
