"""Scores that are no numbers choose the first token of the vocabulary: refuse them instead."""

from torch import Tensor
from transformers import LogitsProcessor

from .settings import DecodingError


def refuse_no_numbers(scores: Tensor, decoder: str) -> None:
    """Refuse scores [B, V] of which a row has no largest finite one; single -inf are cuts.

    Raises:
        DecodingError: a row holds NaN or inf, or nothing but -inf.
    """
    if not scores.amax(-1).isfinite().all():
        raise DecodingError(
            f"{decoder}: the scores of the next token are no numbers; the decoder's settings are "
            "too large or too small, or the student's weights are damaged (greedy fails as well)"
        )


class Finite(LogitsProcessor):
    """The last step before a token is taken: its scores are numbers."""

    def __init__(self, decoder: str) -> None:
        self._decoder = decoder

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] as they are; raises as `refuse_no_numbers` does."""
        refuse_no_numbers(scores, self._decoder)
        return scores
