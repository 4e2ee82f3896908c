"""What the `medalign cache` commands have in common: arguments and exit codes."""

from typing import Annotated

import typer

FAILED = 1
INTERRUPTED = 130

Store = Annotated[str, typer.Argument(help="Folder or URL of the cache.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
