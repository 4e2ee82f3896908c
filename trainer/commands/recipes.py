"""`medalign recipes`, and how a command takes a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ...runtime import arguments as args

recipes = typer.Typer(help="List the recipes that come with medalign, their commands and costs.")


def _complete(incomplete: str) -> list[str]:
    """Complete a shipped recipe, or behind a + a part or a variant."""
    from ..recipe.compose import shipped_parts, shipped_recipes, shipped_variants

    recipe, plus, _ = incomplete.rpartition("+")
    names = [*shipped_variants(), *shipped_parts()] if plus else [*shipped_recipes()]
    return [name for part in names if (name := f"{recipe}{plus}{part}").startswith(incomplete)]


def _no_recipe(name: str) -> str:
    """Let `find_recipe` refuse a name; it knows what is near, and what is a part."""
    from ..recipe.compose import find_recipe

    find_recipe(name)
    return ""


_RECIPE = "A YAML file or a shipped recipe; RECIPE+PART adds a part."

Name = Annotated[str, args.argument(_RECIPE, _no_recipe, complete=_complete)]
Names = Annotated[
    list[str] | None,
    args.argument(_RECIPE, _no_recipe, complete=_complete, show_default="the paper's rows"),
]
RecipeOption = Annotated[str | None, args.option(_RECIPE, problem=_no_recipe, complete=_complete)]
Overrides = Annotated[
    list[str] | None,
    args.option(
        "Override a key of the recipe, as optim.lr=1e-4; repeatable.",
        "--set",
        problem=args.no_assignment,
        metavar="KEY=VALUE",
    ),
]


@recipes.callback(invoke_without_command=True)
def listing(context: typer.Context) -> None:
    """List the recipes that come with medalign, and the parts that they are made of."""
    if context.invoked_subcommand is not None:
        return
    from ..recipe.compose import shipped_parts, shipped_recipes, shipped_variants

    groups = {
        "": shipped_recipes(),
        "\nvariants of a recipe, as in llava-med-slake+no-att": shipped_variants(),
        "\nparts, to compose recipes with `extends`": shipped_parts(),
    }
    width = max(len(name) for group in groups.values() for name in group)
    for title, group in groups.items():
        if title:
            typer.echo(title)
        _print_group(group, width)
    typer.echo(
        "\nmedalign recipes show NAME prints a recipe with its commands, cost NAME what it costs"
    )


@recipes.command("show")
def show(name: Name, override: Overrides = None, as_json: args.Json = False) -> None:
    """Print a recipe with every default filled in, and the commands that reproduce its row.

    The output is a recipe file: `medalign train` takes it.
    """
    from ..recipe.compose import find_recipe
    from ..recipe.recipe import Recipe
    from ..recipe.reproduction import shown, shown_json

    source = find_recipe(name)
    recipe = Recipe.of(source, override or ())
    if as_json:
        typer.echo(shown_json(source, recipe, override or ()))
        return
    for line in shown(source, recipe, override or ()):
        typer.echo(line)


@recipes.command("commands")
def commands(
    name: Name,
    gpus: Annotated[int, args.option("GPUs of this machine that train.", min=1)] = 1,
    override: Overrides = None,
) -> None:
    """Print a shell script that reproduces a row, from the checkpoint to the scores."""
    from ..recipe.compose import find_recipe
    from ..recipe.recipe import Recipe
    from ..recipe.reproduction import script

    source = find_recipe(name)
    overrides = override or ()
    for line in script(source, Recipe.of(source, overrides), gpus, overrides):
        typer.echo(line)


@recipes.command("cost")
def print_cost(names: Names = None) -> None:
    """Compute hours, memory and disk of rows on H100s, before anything is downloaded.

    Computed from published counts; `medalign train --plan` measures a run
    itself.
    """
    from ..recipe.cost import cost_table, paper_rows

    for line in cost_table(names or paper_rows()):
        typer.echo(line)
    typer.echo("\ncomputed, not measured; docs/reproduce.md explains each column")


@recipes.command("reference")
def print_reference() -> None:
    """Print the reference of all keys, as Markdown."""
    from ..recipe.reference import reference

    typer.echo(reference(), nl=False)


def _print_group(group: Mapping[str, Path], width: int) -> None:
    from ..recipe.compose import first_comment

    for name, path in group.items():
        typer.echo(f"{name:{width}}  {first_comment(path)}")
