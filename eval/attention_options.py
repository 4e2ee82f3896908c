"""Options of whose attention is shown, shared by `medalign eval report` and `figures`."""

from pathlib import Path
from typing import Annotated

import typer

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
