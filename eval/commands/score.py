"""`medalign eval score`, `compare`, `table` and `report-texts`."""

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...runtime import arguments as args
from .options import (
    AllowMissing,
    JsonFile,
    MetricsOption,
    ModelPaths,
    TaskName,
    TaskOption,
    keep_inputs,
    metric_names,
    with_model_options,
)

if TYPE_CHECKING:
    from ..compare import Compared
    from ..score import Score


class FormatName(enum.StrEnum):
    """What a table can be written as."""

    markdown = "markdown"
    latex = "latex"
    csv = "csv"


@with_model_options
def score(
    predictions: args.Predictions,
    manifest: args.Manifest,
    task: TaskOption,
    out: Annotated[Path, args.out_file("Scores file to write, JSON.")],
    metrics: MetricsOption = None,
    allow_missing: AllowMissing = False,
    as_json: JsonFile = False,
    *,
    paths: ModelPaths,
) -> None:
    """Score predictions: every metric with its 95% interval, n and definition.

    Predictions and manifest are joined by id. For the intervals, samples of one
    patient are drawn together, or of one image where the manifest names no
    patient. A metric whose model is missing is listed with what it needs; the
    models are found by option, in the folder that $MEDALIGN_METRICS names, or
    in the Hugging Face cache.
    """
    keep_inputs(out, "scored", predictions, manifest)
    names = metric_names(metrics, task)
    _quiet(task)
    from ..result_file import result_json, write_result
    from ..score import score as score_file
    from ..tables import print_scores

    scores = score_file(
        predictions, manifest, task.value, allow_missing=allow_missing, metrics=names, paths=paths()
    )
    text = result_json(scores)
    write_result(out, text)
    if as_json:
        typer.echo(text, nl=False)
    else:
        print_scores(scores, out)
    _fail_on_missing(names, scores.metrics)


@with_model_options
def compare(
    a: Annotated[Path, args.argument("First predictions, JSON Lines.", args.no_file)],
    b: Annotated[Path, args.argument("Second predictions, hoped to be better.", args.no_file)],
    manifest: args.Manifest,
    task: TaskOption,
    out: Annotated[Path | None, args.out_file("Comparison file to write, JSON.")] = None,
    metrics: MetricsOption = None,
    allow_missing: AllowMissing = False,
    as_json: JsonFile = False,
    *,
    paths: ModelPaths,
) -> None:
    """Compare two predictions files, sample by sample: is B better than A?

    For every metric: both values, B - A with its 95% interval, and p of a
    permutation test that swaps the two files patient by patient (or image by
    image). Where an answer is right or wrong, also how many only one file has
    right, with McNemar's exact p.
    """
    keep_inputs(out, "compared", a, b, manifest)
    names = metric_names(metrics, task)
    _quiet(task)
    from ..compare import compare as compare_files
    from ..result_file import result_json, write_result
    from ..tables import print_comparison

    comparison = compare_files(
        a, b, manifest, task.value, allow_missing=allow_missing, metrics=names, paths=paths()
    )
    text = result_json(comparison)
    if out is not None:
        write_result(out, text)
    if as_json:
        typer.echo(text, nl=False)
    else:
        print_comparison(comparison, out)
    _fail_on_missing(names, comparison.metrics)


def table(
    scores: Annotated[
        list[Path], args.argument("Files that `eval score` wrote, one per row.", args.no_file)
    ],
    metrics: MetricsOption = None,
    form: Annotated[
        FormatName | None,
        args.option(
            "latex needs booktabs; csv has every digit and a line per value.",
            "--format",
            show_default="a table for the terminal",
        ),
    ] = None,
    intervals: Annotated[bool, args.flag("Write the intervals behind the values.")] = True,
    out: Annotated[Path | None, args.out_file("File to write.", show_default="stdout")] = None,
) -> None:
    """Put scores of many files side by side: a row for each file, a column for each metric.

    Without --metrics, the columns are the metrics that papers report most. All
    files must be of one task and one manifest.
    """
    names = metric_names(metrics)
    if out is not None and form is None:
        raise args.ArgumentError(f"--out {out}: give --format {', '.join(FormatName)} as well")
    keep_inputs(out, "read", *scores)
    from rich.console import Console

    from ..result_file import write_result
    from ..side_by_side import Overview

    overview = Overview.read(scores, names)
    if form is None:
        Console().print(overview.as_table(intervals=intervals))
    else:
        text = overview.written_as(form.value, intervals=intervals)
        if out is None:
            typer.echo(text, nl=False)
        else:
            write_result(out, text)
            typer.echo(out)
    for line in overview.remarks:
        typer.echo(line, err=form is not None)
    _fail_on_missing(names, list(overview.columns.values()))


def report_texts(
    predictions: args.ManyPredictions,
    manifest: Annotated[Path, args.option("Manifest that they answer.", problem=args.no_file)],
    out: Annotated[Path, args.out_file("File of texts to write, a JSON array.")],
) -> None:
    """Write every distinct report, predicted or reference, for RadGraph to annotate elsewhere."""
    keep_inputs(out, "read", manifest, *predictions)
    from ..score import write_texts

    count = write_texts(predictions, manifest, out)
    typer.echo(f"{out}: {count} texts; docs/metrics.md says how RadGraph annotates them")


def _quiet(task: TaskName) -> None:
    """Silence libraries that print while they load models; questions load none."""
    if task is TaskName.report:
        from ...trainer.machine import quiet_libraries

        quiet_libraries()


def _fail_on_missing(names: Sequence[str], metrics: "Sequence[Score] | Sequence[Compared]") -> None:
    """Exit with 1 if a metric that the user named has no value."""
    if not set(names) <= {metric.group for metric in metrics}:
        raise typer.Exit(1)
