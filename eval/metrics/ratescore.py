"""RaTEScore's arithmetic: entities find their most similar ones, weighted by what they are.

Source: Zhao et al., "RaTEScore: a metric for radiology report generation" (2024), as the package
RaTEScore 0.6.0 computes it; the weights are its published parameters.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

Matrix = Literal["long", "short"]
"""Which of the two published sets of weights: for whole reports, or for short texts."""

TYPES = ("ABNORMALITY", "ANATOMY", "DISEASE", "NON-ABNORMALITY", "NON-DISEASE")
"""Kinds of entity; NON- is one that the report says is absent."""

EMPTY = 0.5
"""What a report scores when either side has no entity."""

_OPPOSITE = frozenset({"DISEASE", "ABNORMALITY"})


@dataclass(frozen=True, slots=True)
class _Weights:
    """Hold how much an entity of one kind that met one of another kind counts.

    Attributes:
        rows: [kind][kind of the match], both in the order of `TYPES`.
        negated: factor for a match of something present with something absent.
    """

    rows: tuple[tuple[float, ...], ...]
    negated: float


_WEIGHTS = MappingProxyType(
    {
        "long": _Weights(
            rows=(
                (0.427612, 0.624093, 0.00344782, 0.543105, 0.270054),
                (0.748782, 0.285613, 0.459214, 0.0209706, 0.000137363),
                (0.839651, 0.995021, 0.846055, 0.982069, 0.378914),
                (0.165468, 0.0186706, 0.719397, 0.000935717, 0.0927334),
                (0.775942, 0.183914, 0.100730, 0.0386018, 0.340657),
            ),
            negated=0.871655,
        ),
        "short": _Weights(
            rows=(
                (0.407029, 0.695264, 0.283425, 0.947915, 0.238751),
                (0.582976, 0.770959, 0.000605963, 0.794673, 0.279829),
                (0.884040, 0.963766, 0.190190, 0.696228, 0.943727),
                (0.171274, 0.448515, 0.000450653, 0.000788793, 0.855543),
                (0.955580, 0.131221, 0.607300, 0.0565071, 0.321477),
            ),
            negated=0.361158,
        ),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Entities:
    """Hold the entities of one report.

    Attributes:
        types: of `TYPES`, one per entity.
        vectors: [E, D] what each means.
    """

    types: tuple[str, ...]
    vectors: Tensor


def rate_score(prediction: Entities, reference: Entities, matrix: Matrix = "long") -> float:
    """Return the harmonic mean of both directions' similarity; 0.5 where a side has no entity."""
    if not prediction.types or not reference.types:
        return EMPTY
    weights = _WEIGHTS[matrix]
    of_reference = _one_way(reference, prediction, weights)
    of_prediction = _one_way(prediction, reference, weights)
    total = of_reference + of_prediction
    return 2 * of_reference * of_prediction / total if total else 0.0


def _one_way(entities: Entities, others: Entities, weights: _Weights) -> float:
    """Return the weighted mean over entities of the cosine with the most similar other."""
    similar = _unit(entities.vectors) @ _unit(others.vectors).T
    best, at = similar.max(dim=1)
    part = whole = 0.0
    for kind, cosine, other in zip(entities.types, best.tolist(), at.tolist(), strict=True):
        met = others.types[other]
        weight = weights.rows[TYPES.index(kind)][TYPES.index(met)]
        part += weight * cosine * (weights.negated if _contradict(kind, met) else 1.0)
        whole += weight
    return part / whole


def _contradict(one: str, two: str) -> bool:
    """Whether one kind is present and the other absent; anatomy contradicts nothing."""
    absent = one.startswith("NON-"), two.startswith("NON-")
    bare = {one.removeprefix("NON-"), two.removeprefix("NON-")}
    return absent[0] != absent[1] and bare <= _OPPOSITE


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
