"""BERTScore's arithmetic: every token finds its most similar one on the other side.

Source: Zhang et al., "BERTScore: evaluating text generation with BERT" (2020), as the package
bert-score 0.3.13 computes it.
"""

from typing import NamedTuple

from torch import Tensor


class Matched(NamedTuple):
    """Precision, recall and their harmonic mean of one pair of texts."""

    precision: float
    recall: float
    f1: float


def greedy_match(
    prediction: Tensor, reference: Tensor, prediction_weights: Tensor, reference_weights: Tensor
) -> Matched:
    """Match token vectors greedily by cosine.

    Tokens of weight 0 (those that open and close a text) are not averaged but may be matched. A
    side without weight, an empty text, makes everything 0.

    Args:
        prediction: [P, D] vectors of the predicted text's tokens.
        reference: [R, D] vectors of the reference's tokens.
        prediction_weights: [P]
        reference_weights: [R]
    """
    if not (prediction_weights.sum() > 0 and reference_weights.sum() > 0):
        return Matched(0.0, 0.0, 0.0)
    similar = _unit(prediction) @ _unit(reference).T
    precision = _mean(similar.amax(dim=1), prediction_weights)
    recall = _mean(similar.amax(dim=0), reference_weights)
    total = precision + recall
    return Matched(precision, recall, 2 * precision * recall / total if total else 0.0)


def _unit(vectors: Tensor) -> Tensor:
    plain = vectors.float()
    return plain.div(plain.norm(dim=-1, keepdim=True))


def _mean(values: Tensor, weights: Tensor) -> float:
    weights = weights.to(values)
    return float((values * weights).sum() / weights.sum())
