"""A recipe put together from several files; every value still knows where it was given."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import yaml

Values = dict[str, Any]
"""Sections of a recipe, as YAML gives them."""

_FOLDER: Final = Path(__file__).parents[1] / "recipes"


class RecipeError(ValueError):
    """A recipe cannot be run as it is written."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes `2e-4` for text; every user means a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_settings(path: Path) -> tuple[Values, dict[str, str]]:
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
        lines = _lines(root, path) if isinstance(root, yaml.MappingNode) else {}
    except RecursionError as error:  # nested too deeply, or a list that is its own item
        raise RecipeError(f"{path}: no recipe: its values are nested without end") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise RecipeError(f"{path}{line}: no valid YAML: {problem}") from error
    if not isinstance(values, dict) or not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, loss and run among them")
    return values, {key: f"{path}:{line}" for key, line in lines.items()}


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
        for key, mark, value in children:
            name, line = f"{prefix}{key}", mark.start_mark.line + 1
            if name in lines:
                raise RecipeError(f"{path}:{line}: {name} is given twice")
            lines[name] = line
            walk(value, f"{name}.")

    walk(root, "")
    return lines


def override(values: Values, text: str) -> str:
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
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"--set {text:.80}: the value is no valid YAML") from error
    target = values.get(section)
    if target is None:
        target = values[section] = {}
    if not isinstance(target, dict):
        raise RecipeError(f"--set {text}: {section} is no section")
    target[name] = parsed
    return f"{section}.{name}"


@dataclass(frozen=True, slots=True)
class Source:
    """What a recipe is made of.

    Attributes:
        asked: as a user writes it.
        files: taken in from left to right, later ones win.
    """

    asked: str
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Without folders and endings; names its run folder."""
        return "+".join(path.stem for path in self.files)


def shipped_recipes() -> dict[str, Path]:
    """Whole recipes that come with medalign, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def shipped_parts() -> dict[str, Path]:
    """What shipped recipes are composed of, by name; none is a recipe by itself."""
    return {path.stem: path for path in sorted((_FOLDER / "parts").glob("*.yaml"))}


def shipped_variants() -> dict[str, Path]:
    """Parts that change a whole recipe, to be added as RECIPE+VARIANT, in the order of lists."""
    paths = (_FOLDER / "variants").glob("*.yaml")
    return {path.stem: path for path in sorted(paths, key=lambda path: _by_number(path.stem))}


def find_recipe(name: str) -> Source:
    """Resolve a file or the name of a shipped recipe, with parts added as in NAME+PART.

    Raises:
        RecipeError: one of the names exists nowhere; says which ones are near. Or a whole recipe
            is added to another.
    """
    words = name.split("+")
    # A folder may have a + in its name, too.
    taken = next((n for n in range(len(words), 0, -1) if Path("+".join(words[:n])).is_file()), 1)
    first, *parts = ["+".join(words[:taken]), *words[taken:]]
    whole = Path(first) if Path(first).is_file() else shipped_recipes().get(first)
    if whole is None:
        raise RecipeError(_no_recipe(first))
    for part in set(parts) & set(shipped_recipes()):
        raise RecipeError(
            f"recipe {name!r}: {part} is a whole recipe; after a + stand parts, "
            f"as in {first}+no-att"
        )
    files = (whole, *(find_part(part, Path(), f"recipe {name!r}") for part in parts))
    return Source(name, files)


def find_part(name: str, folder: Path, where: str) -> Path:
    """Resolve what a recipe is composed of: a shipped part or recipe, or a file.

    Args:
        name: with a slash or an ending .yaml or .yml it is a file.
        folder: that a file's name starts from.
        where: what names it, for the message.

    Raises:
        RecipeError: it exists nowhere.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = folder / name
        if path.is_file():
            return path
        raise RecipeError(f"{where}: there is no file {path}")
    known = {**shipped_recipes(), **shipped_parts(), **shipped_variants()}
    if name in known:
        return known[name]
    raise RecipeError(
        f"{where}: there is no part {name!r}{_near(name, known)}; `medalign recipes` lists the "
        "parts that medalign ships, and a file of yours ends in .yaml"
    )


def first_comment(path: Path) -> str:
    """What a recipe or part says about itself in its first line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def _no_recipe(name: str) -> str:
    if name in {**shipped_parts(), **shipped_variants()}:
        return f"{name!r} is a part, not a whole recipe; add it to one, as in RECIPE+{name}"
    near = _near(name, shipped_recipes())
    return (
        f"no recipe {name!r}: not a file, and medalign ships none of that name{near}; "
        "`medalign recipes` lists them"
    )


def _by_number(name: str) -> tuple[str, int]:
    """Sort layer-8 before layer-12."""
    words, _, number = name.rpartition("-")
    return (words, int(number)) if number.isdigit() else (name, 0)


def _near(name: str, known: Collection[str]) -> str:
    return "".join(f" (did you mean {match}?)" for match in get_close_matches(name, known, n=1))


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
    for name, line in _extends(values, lines, path):
        part = find_part(name, path.parent, f"{line}: extends")
        if (real := part.resolve()) in here:
            circle = " -> ".join(step.name for step in (*here[here.index(real) :], real))
            raise RecipeError(f"{line}: extends goes in a circle: {circle}")
        yield from _chain(part, here)
    yield path, values, lines


def _extends(values: Values, lines: dict[str, str], path: Path) -> list[tuple[str, str]]:
    """Take `extends` out: names, and where each is given."""
    if "extends" not in values:
        return []
    names = values.pop("extends")
    marks = {key: lines.pop(key) for key in list(lines) if key.partition(".")[0] == "extends"}
    line = marks.get("extends", str(path))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"{line}: extends takes a list of parts or files, got {names!r}")
    return [(name, marks.get(f"extends.{k}", line)) for k, name in enumerate(names)]


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


def _forget_marks(values: Values, keys: Collection[str], added: Values) -> None:
    marks, fresh = _marks(values), _marks(added)
    for key in [key for key in marks if key in keys and key not in fresh]:
        del marks[key]
