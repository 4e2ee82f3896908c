"""A recipe for people: every value, which of them are assumed, and the commands as comments."""

import json
from collections.abc import Iterator

from .compose import read_in_order
from .recipe import Recipe
from .reproduction import shell, stages, variables
from .shipped import Source, first_comment
from .yaml_lines import RecipeError


def shown(source: Source, recipe: Recipe) -> Iterator[str]:
    """Lines of a YAML file that is the same recipe again."""
    about = " + ".join(first_comment(path) for path in source.files)
    yield f"# {source.name}: {about}"
    made_of = [path.stem for path in read_in_order(source)]
    if len(made_of) > 1:
        yield f"# from the left, the later ones win: {', '.join(made_of)}"
    yield from _marked(recipe)
    if recipe.paper.data is None:
        return
    yield ""
    try:
        made = stages(source, recipe)
    except RecipeError as error:
        yield f"# no commands: {error}"
        return
    yield f"# The commands (as a script: medalign recipes commands {source.asked}), where"
    for variable, what in variables(recipe).items():
        yield f"# {f'${variable}':<12} {what}"
    for number, stage in enumerate(made, 1):
        yield f"# {number}. {stage.title}"
        yield from (f"#      {shell(words)}" for words in stage.commands)


def shown_json(source: Source, recipe: Recipe) -> str:
    """The recipe, what it is made of, and its commands as words, as JSON."""
    try:
        steps = stages(source, recipe)
    except RecipeError:
        steps = ()
    return json.dumps(
        {
            "name": source.name,
            "made_of": [path.stem for path in read_in_order(source)],
            "recipe": recipe.model_dump(mode="json"),
            "commands": [
                {"title": stage.title, "commands": [list(words) for words in stage.commands]}
                for stage in steps
            ],
        },
        indent=2,
    )


def _marked(recipe: Recipe) -> Iterator[str]:
    """The YAML, where a value that is assumed says so behind it."""
    section = ""
    for line in recipe.to_yaml().splitlines():
        key = line.partition(":")[0]
        if not line.startswith(" "):
            section = key
        reason = (
            recipe.paper.assumed.get(f"{section}.{key.strip()}") if section != "paper" else None
        )
        yield line if reason is None else f"{line}  # assumed: {reason}"
