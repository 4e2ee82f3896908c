"""The `medalign data` commands."""

import typer

from .prepare_command import prepare_command

data = typer.Typer(no_args_is_help=True, help="Prepare data sets, and look them over.")

data.command("prepare")(prepare_command)
