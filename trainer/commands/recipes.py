"""`medalign recipes`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

recipes = typer.Typer(help="Recipes that come with medalign, their commands and costs.")

Name = Annotated[
    str, typer.Argument(help="A YAML file, or a shipped recipe; RECIPE+PART adds a part.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override, as in optim.lr=1e-4."),
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
        _list(group, width)
    typer.echo("\nmedalign recipes show NAME prints one with its commands, cost what it takes")


@recipes.command("show")
def show(
    name: Name,
    override: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a recipe with every default filled in, and the commands that reproduce its row.

    What is printed is a recipe file again: `medalign train` takes it.
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
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of this machine that train.")] = 1,
    override: Overrides = None,
) -> None:
    """Print a shell script that goes from checkpoint and download to the scores of a row."""
    from ..recipe.compose import find_recipe
    from ..recipe.recipe import Recipe
    from ..recipe.reproduction import script

    source = find_recipe(name)
    chosen = override or ()
    for line in script(source, Recipe.of(source, chosen), gpus, chosen):
        typer.echo(line)


@recipes.command("cost")
def print_cost(
    names: Annotated[
        list[str] | None, typer.Argument(help="Recipes.", show_default="the paper's rows")
    ] = None,
) -> None:
    """Compute hours, memory and disk of rows on H100s, before anything is downloaded.

    By formula, from published counts; `medalign train --plan` measures the run
    itself.
    """
    from ..recipe.cost import cost_table, paper_rows

    for line in cost_table(names or paper_rows()):
        typer.echo(line)
    typer.echo("\ncomputed, not measured; docs/reproduce.md says how each column is")


@recipes.command("reference")
def print_reference() -> None:
    """Print the reference of all keys, as Markdown."""
    from ..recipe.reference import reference

    typer.echo(reference(), nl=False)


def _list(group: Mapping[str, Path], width: int) -> None:
    from ..recipe.compose import first_comment

    for name, path in group.items():
        typer.echo(f"{name:{width}}  {first_comment(path)}")
