"""What `medalign recipes` prints of one recipe: its YAML, and the commands of its row."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .compose import RecipeError, Source, first_comment, read_in_order
from .cost import check_layer
from .paper import PaperSection
from .recipe import Recipe, for_ranks

_WHAT: Final = {
    "CHECKPOINT": "folder of the original {student} checkpoint",
    "DOWNLOAD": "folder of the downloaded data set {data}",
    "IMAGES": "folder of its images, which come from elsewhere",
    "WEIGHTS": "weights of the expert {expert}",
}
"""What a user has to fill in, by the name of a shell variable."""

_MAY_LEAVE_OUT: Final = (("data", "prepare"), ("cache", "build"))
"""Commands that end with exit code 1 when they named records or images that cannot be used."""

_Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Commands that belong together.

    Attributes:
        title: what they do.
        commands: words of each, with `$NAME` for what the user fills in.
    """

    title: str
    commands: tuple[_Words, ...]


def variables(recipe: Recipe) -> dict[str, str]:
    """What a user has to fill in: shell variables, and what each is."""
    paper = recipe.paper
    facts = {"student": paper.student, "data": paper.data, "expert": recipe.expert.name}
    needed = (name for name in _WHAT if name != "IMAGES" or paper.images_apart)
    return {name: _WHAT[name].format(**facts) for name in needed}


def stages(
    source: Source, recipe: Recipe, gpus: int = 1, overrides: Sequence[str] = ()
) -> tuple[Stage, ...]:
    """Make the commands from the original checkpoint and download to the scores.

    Args:
        source: that `medalign train` takes.
        recipe: resolved from it.
        gpus: that train together.
        overrides: `section.key=value`, as the recipe was resolved with.

    Raises:
        RecipeError: the recipe says nothing in `paper` of what it reproduces, or it cannot be
            trained on so many GPUs, or its layer is none of its student's.
    """
    paper, expert, mode = recipe.paper, recipe.expert.name, recipe.expert.mode
    if not (paper.student and paper.data and paper.task and expert and mode):
        raise RecipeError(
            f"recipe {source.asked} reproduces no row of the paper: its commands are made of "
            "paper.student, paper.data, paper.task, expert.name and expert.mode"
        )
    for_ranks(recipe, gpus)
    check_layer(recipe)
    student, data = f"students/{paper.student}", f"data/{paper.data}"
    cache, run = f"caches/{paper.data}-{expert}-{mode}", f"runs/{_run_name(source, overrides)}"
    images = f"{data}/images"
    train = (f"{data}/train.jsonl", "--images", images)
    convert = ("convert", "$CHECKPOINT", "--family", paper.student, "--out", student)
    apart = ("--images", "$IMAGES") if paper.images_apart else ()
    prepare = ("prepare", paper.data, "$DOWNLOAD", *apart, "--out", data)
    build = ("build", *train, "--expert", expert, "--weights", "$WEIGHTS", "--out", cache)
    features = () if recipe.expert.features is None else ("--features", recipe.expert.features)
    changed = tuple(word for override in overrides for word in ("--set", override))
    learn = ("train", source.asked, "--cache", cache, "--manifest", *train, "--student", student)
    return (
        Stage("the student, once", (("medalign", "student", *convert),)),
        Stage("the data set, once", (("medalign", "data", *prepare),)),
        Stage(
            "what the expert sees, once",
            (
                ("medalign", "cache", *build, *features, "--mode", mode),
                ("medalign", "cache", "seal", cache),
            ),
        ),
        Stage("train", ((*_launcher(gpus), *learn, *changed, "--out", run),)),
        Stage("answer and score", tuple(_evaluations(paper, data, run))),
    )


def script(
    source: Source, recipe: Recipe, gpus: int = 1, overrides: Sequence[str] = ()
) -> Iterator[str]:
    """Lines of a shell script that does all of it, and can be run again after any interruption."""
    steps = stages(source, recipe, gpus, overrides)
    yield "set -eu"
    for variable, what in variables(recipe).items():
        yield f': "${{{variable}:?{what}}}"'
    for number, stage in enumerate(steps, 1):
        yield f"# {number}. {stage.title}"
        yield from (_line(words) for words in stage.commands)


def shell(words: _Words) -> str:
    """A command as a shell takes it; variables are filled in by the shell."""
    return " ".join(f'"{word}"' if word.startswith("$") else shlex.quote(word) for word in words)


def _run_name(source: Source, overrides: Sequence[str]) -> str:
    """A folder of its own for a recipe that is changed on the command line."""
    words = (re.sub(r"[^\w.=-]+", "-", override) for override in overrides)
    return "+".join((source.name, *words))


def _line(words: _Words) -> str:
    partial = " || [ $? -eq 1 ]  # 1: some left out, each named"
    return shell(words) + partial * (words[1:3] in _MAY_LEAVE_OUT)


def _launcher(gpus: int) -> _Words:
    if gpus == 1:
        return ("medalign",)
    return ("torchrun", "--nproc_per_node", str(gpus), "-m", "medalign")


def _evaluations(paper: PaperSection, data: str, run: str) -> Iterator[_Words]:
    assert paper.task is not None
    test = f"{data}/test.jsonl"
    for decoder in paper.decoders:
        answers = f"{run}/answers-{decoder}.jsonl"
        how = ["--decoder", decoder]
        if decoder == "beam" and paper.beams is not None:
            how += ["--beams", str(paper.beams)]
        if paper.max_new_tokens is not None:
            how += ["--max-new-tokens", str(paper.max_new_tokens)]
        ask = ("generate", run, test, "--images", f"{data}/images", *how, "--out", answers)
        judge = ("score", answers, test, "--task", paper.task)
        yield "medalign", "eval", *ask
        yield "medalign", "eval", *judge, "--out", f"{run}/scores-{decoder}.json"


def shown(source: Source, recipe: Recipe, overrides: Sequence[str] = ()) -> Iterator[str]:
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
        steps = stages(source, recipe, overrides=overrides)
    except RecipeError as error:
        yield f"# no commands: {error}"
        return
    changed = "".join(f" --set {shlex.quote(override)}" for override in overrides)
    if changed and recipe.paper.numbers:
        yield f"# paper.numbers are those of {source.name} without{changed}"
    yield f"# The commands (as a script: medalign recipes commands {source.asked}{changed}), where"
    for variable, what in variables(recipe).items():
        yield f"# {f'${variable}':<12} {what}"
    for number, stage in enumerate(steps, 1):
        yield f"# {number}. {stage.title}"
        yield from (f"#      {shell(words)}" for words in stage.commands)


def shown_json(source: Source, recipe: Recipe, overrides: Sequence[str] = ()) -> str:
    """The recipe, what it is made of, and its commands as words, as JSON."""
    try:
        steps = stages(source, recipe, overrides=overrides)
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
