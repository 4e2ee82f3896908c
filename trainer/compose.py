"""A recipe put together from several files; every value still knows where it was given."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from .shipped import Source, find_part
from .yaml_lines import RecipeError, override, read_settings

Values = dict[str, Any]


def compose(source: Source, overrides: Iterable[str] = ()) -> tuple[Values, dict[str, str]]:
    """Read a source's files, each after all that it extends, then apply the overrides.

    What is read later wins, key by key; a list is replaced as a whole. A mark in `paper.assumed`
    holds for the value beside it: who sets that key later, without a mark, takes it away.

    Args:
        source: from `find_recipe`.
        overrides: `section.key=value`, in order.

    Returns:
        The values, and by dotted key where each was given.

    Raises:
        RecipeError: a file cannot be read, `extends` names what does not exist or makes a circle.
    """
    values: Values = {}
    origin: dict[str, str] = {}
    for path in source.files:
        for _, added, lines in _chain(path, ()):
            _merge(values, added)
            origin |= lines
            _forget_marks(values, lines, added)
    for text in overrides:
        key = override(values, text)
        origin[key] = f"--set {text}"
        _forget_marks(values, {key}, {})
    return values, origin


def read_in_order(source: Source) -> list[Path]:
    """Every file that a source is made of, in the order in which they are taken in."""
    return [path for file in source.files for path, _, _ in _chain(file, ())]


def _chain(path: Path, before: tuple[Path, ...]) -> Iterator[tuple[Path, Values, dict[str, str]]]:
    """What a file is made of, itself last."""
    values, lines = read_settings(path)
    here = (*before, path.resolve())
    for name, where in _extends(values, lines, path):
        found = find_part(name, path.parent, f"{where}: extends")
        if found.resolve() in here:
            circle = (*here[here.index(found.resolve()) :], found.resolve())
            told = " -> ".join(step.name for step in circle)
            raise RecipeError(f"{where}: extends goes in a circle: {told}")
        yield from _chain(found, here)
    yield path, values, lines


def _extends(values: Values, lines: dict[str, str], path: Path) -> list[tuple[str, str]]:
    """Take `extends` out: names, and where each is given."""
    if "extends" not in values:
        return []
    names = values.pop("extends")
    where = lines.get("extends", str(path))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"{where}: extends takes a list of parts or files, got {names!r}")
    found = [(name, lines.get(f"extends.{k}", where)) for k, name in enumerate(names)]
    for key in [key for key in lines if key.partition(".")[0] == "extends"]:
        del lines[key]
    return found


def _merge(into: Values, added: Values) -> None:
    for key, value in added.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        else:
            into[key] = value


def _marks(values: Values) -> Values:
    paper = values.get("paper")
    marks = paper.get("assumed") if isinstance(paper, dict) else None
    return marks if isinstance(marks, dict) else {}


def _forget_marks(values: Values, given: Collection[str], added: Values) -> None:
    marks, fresh = _marks(values), _marks(added)
    for key in [key for key in marks if key in given and key not in fresh]:
        del marks[key]
