"""YAML whose every key knows where it was given: a line of the file, or an override."""

import re
from collections.abc import Iterable
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


def read_settings(
    path: Path, overrides: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a mapping of sections, then apply `section.key=value` overrides (values are YAML).

    Returns:
        The values, and by dotted key where each was given.

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
    origin = {key: f"{path}:{line}" for key, line in _lines(root, path).items()}
    for override in overrides:
        origin[_apply(values, override)] = f"--set {override}"
    return values, origin


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: cannot read the recipe: {reason}") from error


def _lines(root: yaml.MappingNode, path: Path) -> dict[str, int]:
    """Line of every section and key, 1-based.

    Raises:
        RecipeError: a key stands twice; YAML would keep the last in silence.
    """
    lines: dict[str, int] = {}

    def walk(node: yaml.MappingNode, prefix: str) -> None:
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if name in lines:
                raise RecipeError(f"{path}:{key.start_mark.line + 1}: {name} is given twice")
            lines[name] = key.start_mark.line + 1
            if isinstance(value, yaml.MappingNode):
                walk(value, f"{name}.")

    walk(root, "")
    return lines


def _apply(values: dict[str, Any], text: str) -> str:
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
