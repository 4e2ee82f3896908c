"""What a command that looks things over says when it is stopped."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from ..command_options import INTERRUPTED


@contextmanager
def stopping(message: str) -> Iterator[None]:
    """Say so on Ctrl-C, SIGTERM and SIGHUP, and end with exit code 130."""
    from ..interrupt import interruptible

    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        with suppress(OSError):  # after SIGHUP the terminal may be gone
            typer.echo(f"medalign: {message}", err=True)
        raise typer.Exit(INTERRUPTED) from None
