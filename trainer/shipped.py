"""Recipes and parts of recipes by name: those that come with medalign, and files of a user's."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from .yaml_lines import RecipeError

_FOLDER: Final = Path(__file__).parent / "recipes"


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
    found = {path.stem: path for path in (_FOLDER / "variants").glob("*.yaml")}
    return dict(sorted(found.items(), key=lambda item: _by_number(item[0])))


def find_recipe(name: str) -> Source:
    """Resolve a file or the name of a shipped recipe, with parts added as in NAME+PART.

    Raises:
        RecipeError: one of the names exists nowhere; says which ones are near.
    """
    words = name.split("+")
    # A folder may have a + in its name, too.
    taken = next((n for n in range(len(words), 0, -1) if Path("+".join(words[:n])).is_file()), 1)
    first, *parts = ["+".join(words[:taken]), *words[taken:]]
    whole = Path(first) if Path(first).is_file() else shipped_recipes().get(first)
    if whole is None:
        raise RecipeError(_no_recipe(first))
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


def _near(name: str, known: Iterable[str]) -> str:
    found = get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
