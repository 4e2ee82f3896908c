"""Command line of `medalign eval figures`."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from .options import ATTENTION, CacheOption, LayerOption, StudentOption


class FormName(enum.StrEnum):
    """What a figure can be written as."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


def figures(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_STUDENT...", help="Runs, adapters or students' folders."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the figures.")],
    form: Annotated[FormName, typer.Option("--format", help="Of the files.")] = FormName.png,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="Questions whose attention is drawn.",
            show_default="loss curves alone",
            rich_help_panel=ATTENTION,
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of its images.", rich_help_panel=ATTENTION)
    ] = None,
    cache: CacheOption = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Records to draw, evenly chosen; 0 for all.",
            show_default="8",
            rich_help_panel=ATTENTION,
        ),
    ] = None,
    student: StudentOption = None,
    layer: LayerOption = None,
) -> None:
    """Draw a paper's figures: loss curves of runs, and where expert and students look.

    Each run is a line of the curves, and each run or student a panel of every
    overlay: attention of the question to the image at layer l, on one scale.
    """
    from ...trainer.machine import quiet_libraries

    quiet_libraries()
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.reader import TeacherCache
    from ..figures.runs import Drawn, Questions, draw_attention, draw_curves
    from ..predictions import AnswersError
    from ..source import find_source, kind_of, source_names

    attention = (manifest, images, cache, samples, student, layer)
    if (manifest is None or images is None) and attention != (None,) * 6:
        raise AnswersError(
            "attention is drawn of questions and their images: give --manifest and --images"
        )
    if out.exists() and not out.is_dir():
        raise AnswersError(f"--out {out} is a file; give a folder")
    folders = dict(zip(source_names(sources), sources, strict=True))
    kinds, overlays = {name: kind_of(path) for name, path in folders.items()}, Drawn(())
    # What is wrong shows here, before anything is written.
    if manifest is not None and images is not None:
        found = {name: find_source(path, student) for name, path in folders.items()}
        for note in filter(None, (each.unfinished for each in found.values())):
            typer.echo(note, err=True)
        store = None if cache is None else TeacherCache.open(cache, allow_building=True)
        asked = Questions(manifest, images, found, store, layer, 8 if samples is None else samples)
        with ConsoleProgress(unit="samples").counting("drawing") as bar:
            overlays = draw_attention(asked, out, form.value, bar)
    runs = {name: path for name, path in folders.items() if kinds[name] == "run"}
    curves = draw_curves(runs, out, form.value)
    if not curves.files and manifest is None:
        raise AnswersError(
            "nothing to draw: none of the folders is a run that has made a step; --manifest and "
            "--images draw the attention of a student or an adapter"
        )
    _tell(curves.files + overlays.files, curves.problems + overlays.problems)


def _tell(files: tuple[Path, ...], problems: tuple[str, ...]) -> None:
    for path in files:
        typer.echo(path)
    for problem in problems[:10]:
        typer.echo(problem, err=True)
    if problems:
        typer.echo(f"{len(problems)} things are missing from the figures", err=True)
        raise typer.Exit(1)
