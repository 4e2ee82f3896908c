"""A training run as one frozen value, read from YAML. Unknown keys are errors, not warnings."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import ValidationError

from .compose import RecipeError as RecipeError
from .compose import Source, compose
from .paper import PaperSection
from .sections import (
    DataSection,
    DeepSpeedSection,
    ExpertSection,
    LogSection,
    LoraSection,
    LossSection,
    OptimSection,
    RunSection,
    Section,
    StudentSection,
    ValidationSection,
)


class Recipe(Section):
    """Everything that decides a run's numbers."""

    student: StudentSection = StudentSection()
    expert: ExpertSection = ExpertSection()
    loss: LossSection
    lora: LoraSection = LoraSection()
    optim: OptimSection = OptimSection()
    data: DataSection = DataSection()
    deepspeed: DeepSpeedSection = DeepSpeedSection()
    validation: ValidationSection = ValidationSection()
    log: LogSection = LogSection()
    run: RunSection
    paper: PaperSection = PaperSection()

    @classmethod
    def of(cls, source: Source, overrides: Iterable[str] = ()) -> Self:
        """Put a recipe together, then apply `section.key=value` overrides (values are YAML).

        Raises:
            RecipeError: a file is missing or no YAML mapping, or a key or value is refused;
                the message names the line or the override.
        """
        values, origin = compose(source, overrides)
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            problems = [_explain(cls, item, source.asked, origin) for item in error.errors()]
            raise RecipeError("; ".join(problems)) from error
        _check_marks(recipe, origin)
        return recipe

    @classmethod
    def from_yaml(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Read a recipe from one file and what it extends, as `of` does."""
        return cls.of(Source(str(path), (path,)), overrides)

    def settings(self) -> dict[str, Any]:
        """What decides the run, by section: everything but `paper`."""
        return self.model_dump(mode="json", exclude={"paper"})

    def to_yaml(self) -> str:
        """Write the complete recipe, defaults included; `from_yaml` reads it back."""
        sections = self.settings()
        if self.paper != PaperSection():
            sections["paper"] = self.paper.model_dump(mode="json")
        text: str = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
        return text

    def flat(self) -> dict[str, Any]:
        """Every value that decides the run, by its dotted key."""
        return {f"{s}.{k}": v for s, keys in self.settings().items() for k, v in keys.items()}


def _check_marks(recipe: Recipe, origin: dict[str, str]) -> None:
    known = recipe.flat()
    for key in recipe.paper.assumed:
        if key not in known or key not in origin:
            line = origin.get(f"paper.assumed.{key}", "paper.assumed")
            what = "is not set in this recipe" if key in known else "is no key of a recipe"
            raise RecipeError(f"{line}: paper.assumed names {key}, which {what}")


def _explain(recipe: type[Recipe], problem: Any, source: str, origin: dict[str, str]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    line = next(
        (origin[k] for n in range(len(location), 0, -1) if (k := ".".join(location[:n])) in origin),
        source,
    )
    if problem["type"] == "extra_forbidden":
        return f"{line}: unknown key {key}; known here: {_known(recipe, problem['loc'])}"
    if problem["type"] == "missing":
        return f"{line}: {key} is missing"
    return f"{line}: {key or 'recipe'}: {_message(problem)}"


def _message(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return text if problem["type"] == "value_error" else f"{text}, got {problem['input']!r}"


def _known(section: Any, location: tuple[str | int, ...]) -> str:
    """Keys of the section that an unknown one stands in, also of one in a list."""
    for step in location[:-1]:
        if isinstance(step, str):
            section = section.model_fields[step].annotation
        else:
            section = get_args(section)[0]
    return ", ".join(section.model_fields)


def for_ranks(recipe: Recipe, world: int) -> Recipe:
    """Fill in `data.accumulation`, which may follow from `data.per_step` and the ranks at hand.

    Raises:
        RecipeError: a step cannot be divided so, or both are given and contradict each other.
    """
    data = recipe.data
    micro = data.batch_size * world
    parts = f"data.batch_size {data.batch_size} * {world} rank{'s' * (world != 1)}"
    if data.per_step is None:
        accumulation = data.micro_steps
    elif data.per_step % micro:
        raise RecipeError(
            f"data.per_step is {data.per_step}, which is no multiple of {parts}; change one of them"
        )
    else:
        accumulation = data.per_step // micro
    if data.accumulation not in (None, accumulation):
        raise RecipeError(
            f"data.per_step is {data.per_step}, but {parts} * data.accumulation "
            f"{data.accumulation} is {micro * data.micro_steps}; set one of the two to null"
        )
    filled = data.model_copy(update={"accumulation": accumulation})
    return recipe.model_copy(update={"data": filled})
