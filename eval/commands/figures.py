"""`medalign eval figures`, and `medalign cache show`, which draws one row of a cache."""

import enum
import re
from pathlib import Path
from typing import Annotated, Final

import typer

from ...runtime import arguments as args
from .options import (
    ATTENTION,
    OverlayCache,
    OverlayLayer,
    OverlayStudent,
    print_notes,
    print_problems,
    refuse_repeats,
)

_SAMPLES: Final = 8


class FormName(enum.StrEnum):
    """What a figure can be written as."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


def _no_patch(text: str) -> str:
    return "" if re.fullmatch(r"\s*\d+\s*,\s*\d+\s*", text) else "is not ROW,COLUMN, as 3,12"


def figures(
    sources: Annotated[
        list[Path],
        args.argument(
            "Runs, adapters or students' folders.", args.no_source, metavar="RUN_OR_STUDENT..."
        ),
    ],
    out: args.OutFolder,
    form: Annotated[
        FormName, args.option("File format of the figures.", "--format")
    ] = FormName.png,
    manifest: Annotated[
        Path | None,
        args.option(
            "Manifest of questions whose attention is drawn.",
            problem=args.no_file,
            show_default="loss curves alone",
            rich_help_panel=ATTENTION,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        args.option(
            "Folder that image paths start from.", problem=args.no_folder, rich_help_panel=ATTENTION
        ),
    ] = None,
    cache: OverlayCache = None,
    samples: Annotated[
        int | None,
        args.option(
            "Records to draw, evenly chosen; 0 for all.",
            min=0,
            show_default=str(_SAMPLES),
            rich_help_panel=ATTENTION,
        ),
    ] = None,
    student: OverlayStudent = None,
    layer: OverlayLayer = None,
) -> None:
    """Draw a paper's figures: loss curves of runs, and where expert and students look.

    Each run is a line of the curves, and each run or student a panel of every
    overlay: attention of the question to the image at layer l, on one scale.
    """
    attention = (manifest, images, cache, samples, student, layer)
    if (manifest is None or images is None) and attention != (None,) * 6:
        raise args.ArgumentError(
            "attention is drawn of questions and their images: give --manifest and --images"
        )
    refuse_repeats("RUN_OR_STUDENT", sources)
    from ...trainer.machine import quiet_libraries

    quiet_libraries()
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.reader import TeacherCache
    from ..figures.runs import Drawn, Questions, draw_attention, draw_curves
    from ..predictions import AnswersError
    from ..source import find_source, kind_of, source_names

    folders = dict(zip(source_names(sources), sources, strict=True))
    kinds, overlays = {name: kind_of(path) for name, path in folders.items()}, Drawn(())
    # Loading what is drawn shows what is wrong with it, before anything is written.
    if manifest is not None and images is not None:
        students = {name: find_source(path, student) for name, path in folders.items()}
        print_notes(run.unfinished for run in students.values())
        store = None if cache is None else TeacherCache.open(cache, allow_building=True)
        count = _SAMPLES if samples is None else samples
        with ConsoleProgress(unit="samples").counting("drawing") as progress:
            overlays = draw_attention(
                Questions(manifest, images, students, store, layer, count),
                out,
                form.value,
                progress,
            )
    runs = {name: path for name, path in folders.items() if kinds[name] == "run"}
    curves = draw_curves(runs, out, form.value)
    if not curves.files and manifest is None:
        raise AnswersError(
            "nothing to draw: none of the folders is a run that has made a step; --manifest and "
            "--images draw the attention of a student or an adapter"
        )
    for path in curves.files + overlays.files:
        typer.echo(path)
    print_problems(curves.problems + overlays.problems, "figures")


def cache_show(
    store: args.Store,
    key: Annotated[str, args.argument("Image path, SHA-256 of an image file, or row number.")],
    images: args.BuildImages = None,
    patch: Annotated[
        str | None,
        args.option(
            "Patch to compare the others with, row and column from 0.",
            problem=_no_patch,
            metavar="R,C",
            show_default="the most attended",
        ),
    ] = None,
    out: Annotated[Path | None, args.out_file("PNG to write.", show_default="row-N.png")] = None,
) -> None:
    """Draw one row: the image, where the expert looks, which patches it finds alike, padding."""
    from ...teacher_cache.reader import TeacherCache
    from ..figures.cache_row import find_row, parse_patch, show

    cache = TeacherCache.open(store, allow_building=True)
    row = find_row(cache, key)
    path = Path(f"row-{row}.png") if out is None else out
    shown = show(
        cache, key, path, images=images, patch=None if patch is None else parse_patch(patch)
    )
    if shown.remark:
        typer.echo(f"without the image: {shown.remark}", err=True)
    typer.echo(f"{path}: row {shown.row}, {shown.path}, patch {shown.patch[0]},{shown.patch[1]}")
