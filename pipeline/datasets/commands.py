"""The `medalign data` commands."""

import typer

from .check_command import check
from .leakage_command import leakage
from .prepare_command import prepare_command

data = typer.Typer(no_args_is_help=True, help="Prepare data sets, and look them over.")

data.command("prepare")(prepare_command)
data.command("check")(check)
data.command("leakage")(leakage)
