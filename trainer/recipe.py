"""A training run as one frozen value, read from YAML. Unknown keys are errors, not warnings."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ValidationError

from .recipe_run_sections import (
    DataSection,
    DeepSpeedSection,
    LogSection,
    RunSection,
    ValidationSection,
)
from .recipe_sections import (
    ExpertSection,
    LoraSection,
    LossSection,
    OptimSection,
    Section,
    StudentSection,
)
from .yaml_lines import RecipeError as RecipeError
from .yaml_lines import read_settings


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

    @classmethod
    def from_yaml(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Read a recipe, then apply `section.key=value` overrides (values are YAML).

        Raises:
            RecipeError: the file is missing or no YAML mapping, or a key or value is refused;
                the message names the line or the override.
        """
        values, origin = read_settings(path, overrides)
        return cls._checked(values, path, origin)

    @classmethod
    def _checked(cls, values: dict[str, Any], path: Path, origin: dict[str, str]) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = [_explain(cls, item, path, origin) for item in error.errors()]
            raise RecipeError("; ".join(problems)) from error

    def to_yaml(self) -> str:
        """Write the complete recipe, defaults included; `from_yaml` reads it back."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted key."""
        sections = self.model_dump(mode="json")
        return {f"{s}.{k}": v for s, keys in sections.items() for k, v in keys.items()}


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with medalign, by name."""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Resolve a path, or the name of a shipped recipe.

    Raises:
        RecipeError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise RecipeError(f"no recipe {name!r}: not a file, and medalign ships {sorted(shipped)}")


def _explain(recipe: type[Recipe], problem: Any, path: Path, origin: dict[str, str]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    where = next(
        (origin[k] for n in range(len(location), 0, -1) if (k := ".".join(location[:n])) in origin),
        str(path),
    )
    if problem["type"] == "extra_forbidden":
        section = recipe.model_fields.get(location[0]) if len(location) > 1 else None
        known = _known(section.annotation if section else recipe)
        return f"{where}: unknown key {key}; known here: {known}"
    if problem["type"] == "missing":
        return f"{where}: {key} is missing"
    return f"{where}: {key or 'recipe'}: {_message(problem)}"


def _message(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return text if problem["type"] == "value_error" else f"{text}, got {problem['input']!r}"


def _known(section: Any) -> str:
    return ", ".join(section.model_fields)
