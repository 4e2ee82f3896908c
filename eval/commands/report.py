"""Command line of `medalign eval report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    ATTENTION,
    CacheOption,
    LayerOption,
    MetricsOption,
    StudentOption,
    TaskOption,
    metric_names,
    with_model_options,
)

if TYPE_CHECKING:
    from ..metric_models.locate import InstrumentPaths


@with_model_options
def report(
    predictions: Annotated[
        list[Path], typer.Argument(help="Predictions; the others are compared with the first.")
    ],
    manifest: Annotated[Path, typer.Argument(help="Manifest they answer.")],
    images: Annotated[Path, typer.Option(help="Folder of its images.")],
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    samples: Annotated[
        int, typer.Option(min=0, help="Samples to show, evenly chosen; 0 for all.")
    ] = 200,
    image_side: Annotated[
        int, typer.Option(min=32, help="Longest side of an image in the file, in pixels.")
    ] = 448,
    metrics: MetricsOption = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Take records that no file answers as answered with nothing."
        ),
    ] = False,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="What `eval score` wrote of one of the predictions, in place of computing it; "
            "repeatable.",
        ),
    ] = None,
    cache: CacheOption = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN_OR_STUDENT",
            help="Whose attention to show; repeatable.",
            rich_help_panel=ATTENTION,
        ),
    ] = None,
    student: StudentOption = None,
    layer: LayerOption = None,
    *,
    paths: "InstrumentPaths",
) -> None:
    """Write one HTML file: scores, paired differences, and every sample with its images.

    It opens without a network. It holds images and texts of your data: what
    must not be passed on must not be passed on inside it. Models that metrics
    of reports need are found as by `eval score`: by option, in the folder that
    $MEDALIGN_METRICS names, or in the Hugging Face cache.
    """
    from ...trainer.machine import quiet_libraries

    quiet_libraries()
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.reader import TeacherCache
    from ..html_report.write import write_report
    from ..predictions import AnswersError
    from ..source import find_source, source_names

    names = metric_names(metrics)
    shown = source or []
    if not shown and not (student is None and layer is None):
        raise AnswersError("--student and --layer say more of a --source; give one")
    sources = [find_source(path, student) for path in shown]
    for each in sources:
        if each.unfinished:
            typer.echo(each.unfinished, err=True)
    with ConsoleProgress(unit="samples").counting("drawing") as bar:
        written = write_report(
            predictions,
            manifest,
            images,
            task.value,
            out,
            cache=None if cache is None else TeacherCache.open(cache, allow_building=True),
            sources=list(zip(source_names(shown), sources, strict=True)),
            layer=layer,
            samples=samples,
            side=image_side,
            allow_missing=allow_missing,
            metrics=names,
            paths=paths,
            scores=scores or (),
            progress=bar,
        )
    typer.echo(
        f"{out}: {written.shown} of {written.records} samples, {written.size_bytes / 1e6:.1f} MB"
    )
    for problem in written.problems[:10]:
        typer.echo(problem, err=True)
    if written.problems:
        typer.echo(f"{len(written.problems)} things are missing from the report", err=True)
        raise typer.Exit(1)
