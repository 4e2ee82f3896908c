"""`medalign recipes`."""

from pathlib import Path
from typing import Annotated

import typer

recipes = typer.Typer(help="Recipes that come with medalign, and every key of a recipe.")


@recipes.callback(invoke_without_command=True)
def listing(context: typer.Context) -> None:
    """List the recipes that come with medalign."""
    if context.invoked_subcommand is not None:
        return
    from .recipe import shipped_recipes

    found = shipped_recipes()
    width = max(len(name) for name in found)
    for name, path in found.items():
        typer.echo(f"{name:{width}}  {_first_comment(path)}")


@recipes.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Recipe: a YAML file, or a shipped one's name.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, as in optim.lr=1e-4."),
    ] = None,
) -> None:
    """Print a recipe with every default filled in."""
    from .recipe import Recipe, find_recipe

    typer.echo(Recipe.from_yaml(find_recipe(name), override or ()).to_yaml(), nl=False)


@recipes.command("reference")
def print_reference() -> None:
    """Print the reference of all keys, as Markdown."""
    from .recipe_reference import reference

    typer.echo(reference(), nl=False)


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
