"""YAML whose every key knows where it was given: a line of the file, or an override."""

import re
from pathlib import Path
from typing import Any

import yaml


class RecipeError(ValueError):
    """A recipe cannot be run as it is written."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes `2e-4` for text; every user means a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_settings(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read one file: a mapping of sections.

    Returns:
        The values, and by dotted key (of a list, also by its items' numbers) where each was given.

    Raises:
        RecipeError: the file is missing or no YAML mapping, or a key is given twice.
    """
    text = _read(path)
    try:
        root = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise RecipeError(f"{where}: no valid YAML: {problem}") from error
    if not isinstance(values, dict) or not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, loss and run among them")
    return values, {key: f"{path}:{line}" for key, line in _lines(root, path).items()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: cannot read the recipe: {reason}") from error


def _lines(root: yaml.MappingNode, path: Path) -> dict[str, int]:
    """Line of every section, key and list item, 1-based.

    Raises:
        RecipeError: a key stands twice; YAML would keep the last in silence.
    """
    lines: dict[str, int] = {}

    def walk(node: yaml.Node, prefix: str) -> None:
        children = []
        if isinstance(node, yaml.MappingNode):
            children = [(key.value, key, value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = [(number, item, item) for number, item in enumerate(node.value)]
        for key, place, value in children:
            name = f"{prefix}{key}"
            if name in lines:
                raise RecipeError(f"{path}:{place.start_mark.line + 1}: {name} is given twice")
            lines[name] = place.start_mark.line + 1
            walk(value, f"{name}.")

    walk(root, "")
    return lines


def override(values: dict[str, Any], text: str) -> str:
    """Set one key from `section.key=value`, where the value is YAML.

    Returns:
        The dotted key.

    Raises:
        RecipeError: the text is not of that form.
    """
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise RecipeError(f"--set takes section.key=value, got {text!r}")
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: the value is no valid YAML") from error
    target = values.get(section)
    if target is None:
        target = values[section] = {}
    if not isinstance(target, dict):
        raise RecipeError(f"--set {text}: {section} is no section")
    target[name] = parsed
    return f"{section}.{name}"
