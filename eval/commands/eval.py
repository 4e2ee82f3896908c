"""Command line of `medalign eval`, and `medalign cache show`, which draws."""

from pathlib import Path
from typing import Annotated

import typer

from .figures import figures
from .generate import generate
from .report import report
from .score import compare, report_texts, score, table

app = typer.Typer(
    no_args_is_help=True, help="Answer questions with a student and score the answers."
)
app.command()(generate)
app.command()(score)
app.command()(compare)
app.command()(table)
app.command()(report)
app.command()(figures)
app.command("report-texts")(report_texts)


@app.command("lmms-tasks")
def lmms_tasks() -> None:
    """Print the folder of tasks for lmms-eval's `--include_path`."""
    from ..lmms_eval.tasks import TASKS

    typer.echo(TASKS)


def cache_show(
    store: Annotated[str, typer.Argument(help="Folder or URL of the cache.", show_default=False)],
    key: Annotated[
        str, typer.Argument(help="Image path, SHA-256 of an image file, or row number.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images.", show_default="where the build found them"),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="R,C",
            help="Patch to compare the others with, row and column from 0.",
            show_default="the most attended",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG to write.", show_default="row-N.png")
    ] = None,
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
