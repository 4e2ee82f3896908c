"""Compare the 14 CheXbert labels of predictions with those of references."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LABELS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
"""In the order of CheXbert's heads."""

TOP_5 = tuple(
    LABELS.index(name)
    for name in ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
)
"""The five labels that CheXpert's leaderboard counts, as indices of `LABELS`."""

FINDINGS = len(LABELS) - 1
"""All labels but the last: "No Finding" is no finding, so it can be neither invented nor missed."""

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)
"""What each of CheXbert's heads answers; the head of "No Finding" knows the first two only."""

Found = NDArray[np.bool_]


def found_labels(classes: Sequence[int]) -> Found:
    """Return which of the 14 labels a report has, bool [14]: positive or uncertain.

    That is how report generation is scored ("rrg" of the f1chexbert package); an uncertain
    finding is one that a reader would act upon.
    """
    answers = np.asarray(classes)
    return np.isin(answers, (POSITIVE, UNCERTAIN))


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What one report adds to F1, as numbers per label, float64 [labels].

    Attributes:
        both: 1 where prediction and reference have the label.
        predicted: 1 where the prediction has it.
        reference: 1 where the reference has it.
    """

    both: NDArray[np.float64]
    predicted: NDArray[np.float64]
    reference: NDArray[np.float64]

    @classmethod
    def of(cls, predicted: Found, reference: Found) -> "LabelCounts":
        """Count one report."""
        both = predicted & reference
        return cls(both.astype(float), predicted.astype(float), reference.astype(float))

    def only(self, labels: Sequence[int]) -> "LabelCounts":
        """Return the counts of some labels, given by their indices."""
        chosen = list(labels)
        return LabelCounts(self.both[chosen], self.predicted[chosen], self.reference[chosen])

    def f1_terms(self) -> tuple[list[float], list[float]]:
        """Return part and whole of each label's F1 = 2 both / (predicted + wanted)."""
        return (2 * self.both).tolist(), (self.predicted + self.reference).tolist()

    def f1(self) -> float:
        """Return the F1 over the report's labels, 0 where neither side has one."""
        whole = float((self.predicted + self.reference).sum())
        return 2 * float(self.both.sum()) / whole if whole else 0.0
