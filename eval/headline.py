"""Which metrics a reader looks for first, and what a file of answers is called beside others."""

from collections.abc import Sequence
from pathlib import Path

from .metrics.definitions import Key
from .score import Score

HEADLINE: frozenset[Key] = frozenset(
    {
        ("llava-med", "open_recall"),
        ("llava-med", "closed_accuracy"),
        ("strict", "closed_accuracy"),
        ("strict", "choice_accuracy"),
        ("strict", "overall_accuracy"),
        ("strict", "hallucination_rate"),
        *(
            ("medalign", name)
            for name in (
                "bleu",
                "rouge_l",
                "meteor",
                "bertscore_f1",
                "chexbert_similarity",
                "radgraph_combined",
                "ratescore",
            )
        ),
    }
)
"""(protocol, name) of what is shown before, or without, all the rest."""


def headline(metrics: Sequence[Score]) -> list[Score]:
    """Return the metrics that are shown first; all of them where none of the usual ones is."""
    return [each for each in metrics if (each.protocol, each.name) in HEADLINE] or list(metrics)


def labels(files: Sequence[Path], decoders: Sequence[str]) -> list[str]:
    """Return a name for every file: the decoder's, or the file's own where decoders repeat."""
    if len(set(decoders)) == len(decoders):
        return list(decoders)
    named = [f"{p.stem} ({d})" for p, d in zip(files, decoders, strict=True)]
    if len(set(named)) == len(named):
        return named
    return [f"{path} ({d})" for path, d in zip(files, decoders, strict=True)]
