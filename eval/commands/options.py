"""Options of where models of report metrics are: one table, for every command that scores."""

import enum
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..metric_models.locate import InstrumentPaths

MODELS = "Models of report metrics (nothing is fetched)"


def model_paths(
    bertscore: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="roberta-large, or another model.", rich_help_panel=MODELS
        ),
    ] = None,
    bertscore_layer: Annotated[
        int | None,
        typer.Option(
            help="Layer that BERTScore compares.",
            show_default="17 of roberta-large",
            rich_help_panel=MODELS,
        ),
    ] = None,
    chexbert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="chexbert.pth.", rich_help_panel=MODELS)
    ] = None,
    bert: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="bert-base-uncased: CheXbert's configuration and vocabulary.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    radgraph: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="radgraph.tar.gz, or the folder with its files.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    radgraph_bert: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="PubMedBERT: RadGraph's configuration and vocabulary.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    radgraph_annotations: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Annotations by the package radgraph, JSON, in place of its model; repeatable.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    ratescore_ner: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="RaTE-NER-Deberta.", rich_help_panel=MODELS),
    ] = None,
    ratescore_synonyms: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="BioLORD-2023-C.", rich_help_panel=MODELS),
    ] = None,
) -> "InstrumentPaths":
    """Return what a user says of where the models are; the parameters are the options."""
    from ..metric_models.locate import InstrumentPaths

    return InstrumentPaths(
        bertscore=bertscore,
        bertscore_layer=bertscore_layer,
        chexbert=chexbert,
        bert=bert,
        radgraph=radgraph,
        radgraph_bert=radgraph_bert,
        annotations=tuple(radgraph_annotations or ()),
        ratescore_ner=ratescore_ner,
        ratescore_synonyms=ratescore_synonyms,
    )


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `model_paths` in the place of its parameter `paths`.

    Args:
        command: takes `paths`, an `InstrumentPaths`, by name.
    """
    own = inspect.signature(command)
    models = inspect.signature(model_paths).parameters
    kept = [each for name, each in own.parameters.items() if name != "paths"]
    parameters = [*kept, *models.values()]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in models}
        command(**given, paths=model_paths(**chosen))

    # Typer makes options of a signature and of type hints, and a function has no other table.
    described: Any = run
    described.__signature__ = own.replace(parameters=parameters)
    described.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


ATTENTION = "Attention overlays"
"""Panel of the help that these options stand in."""

CacheOption = Annotated[
    str | None,
    typer.Option(
        metavar="STORE",
        help="Teacher cache with these images: the expert's attention.",
        rich_help_panel=ATTENTION,
    ),
]
StudentOption = Annotated[
    Path | None,
    typer.Option(help="Where the runs' student is, if it moved.", rich_help_panel=ATTENTION),
]
LayerOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Layer to read of a student without an adapter; a run has its own.",
        show_default="that of the runs",
        rich_help_panel=ATTENTION,
    ),
]


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
        from ..predictions import AnswersError

        raise AnswersError(
            f"--metrics {given!r} names no metric: give NAME,... or leave it out, for all"
        )
    return names
