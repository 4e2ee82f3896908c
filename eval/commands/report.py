"""`medalign eval report`."""

from pathlib import Path
from typing import Annotated

import typer

from ...runtime import arguments as args
from .options import (
    ATTENTION,
    AllowMissing,
    MetricsOption,
    ModelPaths,
    OverlayCache,
    OverlayLayer,
    OverlayStudent,
    TaskOption,
    keep_inputs,
    metric_names,
    print_notes,
    print_problems,
    refuse_repeats,
    with_model_options,
)


@with_model_options
def report(
    predictions: args.ManyPredictions,
    manifest: args.Manifest,
    images: args.Images,
    task: TaskOption,
    out: Annotated[Path, args.out_file("HTML file to write.")],
    samples: Annotated[int, args.option("Samples to show, evenly chosen; 0 for all.", min=0)] = 200,
    image_side: Annotated[
        int, args.option("Longest side of an image in the file, in pixels.", min=32)
    ] = 448,
    metrics: MetricsOption = None,
    allow_missing: AllowMissing = False,
    scores: Annotated[
        list[Path] | None,
        args.option(
            "File that `eval score` wrote of one of the predictions; repeatable.",
            problem=args.no_file,
            metavar="FILE",
            show_default="compute the scores",
        ),
    ] = None,
    cache: OverlayCache = None,
    source: Annotated[
        list[Path] | None,
        args.option(
            "Run or student whose attention to show; repeatable.",
            problem=args.no_source,
            metavar="RUN_OR_STUDENT",
            rich_help_panel=ATTENTION,
        ),
    ] = None,
    student: OverlayStudent = None,
    layer: OverlayLayer = None,
    *,
    paths: ModelPaths,
) -> None:
    """Write one HTML file: scores, paired differences, and every sample with its images.

    With several predictions, the others are compared with the first. The file
    opens without a network. It contains images and texts of your data: share it
    only with people who may see these. Models of report metrics are found as by
    `eval score`: by option, in the folder that $MEDALIGN_METRICS names, or in
    the Hugging Face cache.
    """
    runs = source or []
    if not runs and not (student is None and layer is None):
        raise args.ArgumentError("--student and --layer describe a --source: give --source as well")
    refuse_repeats("PREDICTIONS", predictions)
    refuse_repeats("--source", runs)
    keep_inputs(out, "shown", *predictions, manifest, *(scores or ()))
    names = metric_names(metrics, task)
    from ...trainer.machine import quiet_libraries

    quiet_libraries()
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.reader import TeacherCache
    from ..html_report.write import write_report
    from ..source import find_source, source_names

    sources = [find_source(path, student) for path in runs]
    print_notes(run.unfinished for run in sources)
    with ConsoleProgress(unit="samples").counting("drawing") as progress:
        written = write_report(
            predictions,
            manifest,
            images,
            task.value,
            out,
            cache=None if cache is None else TeacherCache.open(cache, allow_building=True),
            sources=list(zip(source_names(runs), sources, strict=True)),
            layer=layer,
            samples=samples,
            side=image_side,
            allow_missing=allow_missing,
            metrics=names,
            paths=paths(),
            scores=scores or (),
            progress=progress,
        )
    typer.echo(
        f"{out}: {written.shown} of {written.records} samples, {written.size_bytes / 1e6:.1f} MB"
    )
    print_problems(written.problems, "report")
