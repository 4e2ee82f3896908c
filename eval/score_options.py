"""Options of what is scored and what is printed, shared by the commands of `medalign eval`."""

import enum
from pathlib import Path
from typing import Annotated

import typer


class TaskName(enum.StrEnum):
    """What can be scored."""

    vqa = "vqa"
    report = "report"


PredictionsPath = Annotated[Path, typer.Argument(help="Predictions, JSON Lines.")]
ManifestPath = Annotated[Path, typer.Argument(help="Manifest the predictions answer.")]
TaskOption = Annotated[TaskName, typer.Option(help="Short answers, or whole reports.")]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="vqa: open, closed, choice, overall, hallucination; report: bleu, rouge_l, meteor, "
        "bertscore, chexbert, radgraph, ratescore.",
        show_default="all",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the file, not a table.")]


def metric_names(given: str | None) -> list[str]:
    """Return the names that `--metrics` was given, none for all.

    Raises:
        AnswersError: it was given, but no name with it.
    """
    if given is None:
        return []
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        # Inside: the command line must not load what reads answers to print its help.
        from .answers import AnswersError

        raise AnswersError(
            f"--metrics {given!r} names no metric: give NAME,... or leave it out, for all"
        )
    return names
