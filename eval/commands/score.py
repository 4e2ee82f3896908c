"""Command line of `medalign eval score`, `compare`, `table` and `report-texts`."""

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    JsonOption,
    ManifestPath,
    MetricsOption,
    PredictionsPath,
    TaskName,
    TaskOption,
    metric_names,
    with_model_options,
)

if TYPE_CHECKING:
    from ..compare import Compared
    from ..metric_models.locate import InstrumentPaths
    from ..score import Score


@with_model_options
def score(
    predictions: PredictionsPath,
    manifest: ManifestPath,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Scores file to write, JSON.")],
    metrics: MetricsOption = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Take unanswered records as answered with nothing; else refuse."
        ),
    ] = False,
    as_json: JsonOption = False,
    *,
    paths: "InstrumentPaths",
) -> None:
    """Score predictions: every metric with its 95% interval, n and definition.

    Predictions and manifest are joined by id. For the intervals, samples of one
    patient are drawn together, or of one image where the manifest names no
    patient. A metric whose model is not there is named, with what it needs and
    where that was looked for; the models are found by option, in the folder
    that $MEDALIGN_METRICS names, or in the Hugging Face cache.
    """
    from ..result_file import result_json, write_result
    from ..score import score as score_file
    from ..tables import print_scores

    _keep_inputs(out, "scored", predictions, manifest, *paths.annotations)
    names = metric_names(metrics)
    _quiet(task)
    scores = score_file(
        predictions, manifest, task.value, allow_missing=allow_missing, metrics=names, paths=paths
    )
    text = result_json(scores)
    write_result(out, text)
    if as_json:
        typer.echo(text, nl=False)
    else:
        print_scores(scores, out)
    _fail_on_named(names, scores.metrics)


@with_model_options
def compare(
    a: Annotated[Path, typer.Argument(help="First predictions, JSON Lines.")],
    b: Annotated[Path, typer.Argument(help="Second predictions: what is hoped to be better.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest both answer.")],
    task: TaskOption,
    out: Annotated[Path | None, typer.Option(help="Comparison file to write, JSON.")] = None,
    metrics: MetricsOption = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Take records that neither file answers as answered with nothing.",
        ),
    ] = False,
    as_json: JsonOption = False,
    *,
    paths: "InstrumentPaths",
) -> None:
    """Compare two predictions files, sample by sample: is B better than A?

    For every metric: both values, B - A with its 95% interval, and p of a
    permutation test that swaps the two files patient by patient (or image by
    image). Where an answer is right or wrong, also how many only one file has
    right, with McNemar's exact p.
    """
    from ..compare import compare as compare_files
    from ..result_file import result_json, write_result
    from ..tables import print_comparison

    if out is not None:
        _keep_inputs(out, "compared", a, b, manifest, *paths.annotations)
    names = metric_names(metrics)
    _quiet(task)
    found = compare_files(
        a, b, manifest, task.value, allow_missing=allow_missing, metrics=names, paths=paths
    )
    text = result_json(found)
    if out is not None:
        write_result(out, text)
    if as_json:
        typer.echo(text, nl=False)
    else:
        print_comparison(found, out)
    _fail_on_named(names, found.metrics)


class FormatName(enum.StrEnum):
    """What a table can be written as."""

    markdown = "markdown"
    latex = "latex"
    csv = "csv"


def table(
    scores: Annotated[list[Path], typer.Argument(help="What `eval score` wrote, one per row.")],
    metrics: MetricsOption = None,
    form: Annotated[
        FormatName | None,
        typer.Option(
            "--format",
            help="latex needs booktabs; csv has every digit and a line per value.",
            show_default="a table for the terminal",
        ),
    ] = None,
    intervals: Annotated[bool, typer.Option(help="Write them behind the values.")] = True,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="stdout")] = None,
) -> None:
    """Put scores of many files side by side: a row for each file, a column for each metric.

    Without --metrics, the columns are what is looked for first. All files are
    of one task and one manifest.
    """
    from rich.console import Console

    from ..predictions import AnswersError
    from ..result_file import write_result
    from ..side_by_side import Overview

    names = metric_names(metrics)
    if out is not None:
        if form is None:
            raise AnswersError(f"--out {out}: give --format {', '.join(FormatName)} as well")
        _keep_inputs(out, "read", *scores)
    found = Overview.read(scores, names)
    if form is None:
        Console().print(found.as_table(intervals=intervals))
    else:
        text = found.written_as(form.value, intervals=intervals)
        if out is None:
            typer.echo(text, nl=False)
        else:
            write_result(out, text)
            typer.echo(out)
    for line in found.remarks:
        typer.echo(line, err=form is not None)
    _fail_on_named(names, list(found.columns.values()))


def report_texts(
    predictions: Annotated[list[Path], typer.Argument(help="Predictions, one file or several.")],
    manifest: Annotated[Path, typer.Option(help="Manifest they answer.")],
    out: Annotated[Path, typer.Option(help="JSON array of texts to write.")],
) -> None:
    """Write every distinct report, predicted or reference, for RadGraph to annotate elsewhere."""
    _keep_inputs(out, "read", manifest, *predictions)
    from ..score import write_texts

    count = write_texts(predictions, manifest, out)
    typer.echo(f"{out}: {count} texts; docs/metrics.md says how RadGraph annotates them")


def _keep_inputs(out: Path, use: str, *inputs: Path) -> None:
    """Refuse to write over a file that is read.

    Raises:
        AnswersError: `out` is one of the inputs, perhaps by another name.
    """
    from ..predictions import AnswersError

    if out.resolve() in {path.resolve() for path in inputs}:
        raise AnswersError(f"{out}: --out would overwrite what is {use}; choose another file")


def _quiet(task: TaskName) -> None:
    """Silence libraries that talk while they load models; questions load none."""
    if task is TaskName.report:
        from ...trainer.machine import quiet_libraries

        quiet_libraries()


def _fail_on_named(names: Sequence[str], metrics: "Sequence[Score] | Sequence[Compared]") -> None:
    """Exit with 1 if nothing that goes by a name that was asked for has a value."""
    if not set(names) <= {metric.group for metric in metrics}:
        raise typer.Exit(1)
