"""Options and arguments that several commands share, and the checks that need nothing heavy.

Typer calls a check before the command itself, which is where the heavy imports stand: a wrong
path or name costs no import of torch.
"""

import difflib
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from .parts import Part, PartError

Problem = Callable[[str], str]
"""Says what is wrong with one value; an empty text where nothing is."""

Names = Callable[[], Iterable[str]]
"""Lists the names that an option takes; called by its check and by the shell's completion."""

_LISTED: Final = 10_000
"""Files of a folder that are looked at for a similar name; image folders hold millions."""

_DEVICE: Final = re.compile(r"(auto|cpu|cuda|mps|xpu|hpu|mtia|hip|xla|privateuseone)(:\d+)?")


class ArgumentError(ValueError):
    """An argument that cannot be right, or two that contradict each other; nothing was done."""

    def __init__(self, message: str) -> None:
        # A path may hold a line break or half a character; the message stays one line.
        super().__init__("".join(_visible(character) for character in message))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question for the nearest known name; an empty text where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def unknown(noun: str, name: str, known: Iterable[str], listed: Iterable[str] = ()) -> str:
    """Say that a name is unknown, and which is near or, where none is, which there are.

    Args:
        noun: what the name is of.
        name: as a user wrote it.
        known: every name.
        listed: what to list instead, where there are too many names.
    """
    names = list(known)
    others = f"; known are {', '.join(listed or names)}"
    return f"unknown {noun}{did_you_mean(name, names) or others}"


# What can be known of a path without reading it.


def no_file(text: str) -> str:
    """Say why there is no file to read; a pipe such as /dev/stdin is one."""
    path = _there(text)
    if path.is_dir():
        return "is a folder, not a file"
    return "" if path.exists() else _absent(path, "file")


def no_folder(text: str) -> str:
    """Say why there is no such folder."""
    path = _there(text)
    if path.is_dir():
        return ""
    return "is a file, not a folder" if path.exists() else _absent(path, "folder")


def no_path(text: str) -> str:
    """Say why there is neither a file nor a folder."""
    path = _there(text)
    return "" if path.exists() else _absent(path, "file or folder")


def no_store(text: str) -> str:
    """Say why there is no cache; whether there is one at a URL, only the command can find out."""
    return "" if "://" in text else no_folder(text)


def no_new_file(text: str) -> str:
    """Say why no file can be written at a path."""
    path = _there(text)
    return "is a folder; name a file in it" if path.is_dir() else _unmakeable(path)


def no_new_folder(text: str) -> str:
    """Say why no folder can be made at a path, or used if it is there."""
    path = _there(text)
    if path.exists() and not path.is_dir():
        return "is a file; give a folder"
    return _unmakeable(path)


def no_new_store(text: str) -> str:
    """Say why no cache can be made at a path; nothing is known of a URL."""
    return "" if "://" in text else no_new_folder(text)


def no_folder_of(**files: str) -> Problem:
    """Make a check: the path is a folder of one of these kinds, each known by a file."""
    *kinds, last = (f"{kind} ({name})" for kind, name in files.items())
    nothing = f"is no {', '.join(kinds)}{' or ' * bool(kinds)}{last}"

    def problem(text: str) -> str:
        path = _there(text)
        wrong = no_folder(text)
        return wrong or ("" if any((path / name).is_file() for name in files.values()) else nothing)

    return problem


no_student = no_folder_of(student="config.json")
no_run = no_folder_of(run="recipe.yaml")
no_source = no_folder_of(run="recipe.yaml", adapter="adapter_config.json", student="config.json")


def no_part(text: str) -> str:
    """Say why a text is no share I/N."""
    try:
        Part.parse(text)
    except PartError as error:
        return f"{error}; give one of N shares, as 1/4"
    return ""


def no_device(text: str) -> str:
    """Say why torch has no such device; whether the machine has it, the command finds out."""
    if _DEVICE.fullmatch(text):
        return ""
    return f"unknown device{did_you_mean(text, ('auto', 'cpu', 'cuda'))}"


def no_assignment(text: str) -> str:
    """Say why a text is not KEY=VALUE."""
    key, equals, _ = text.partition("=")
    return "" if equals and key.strip() else "is not KEY=VALUE"


# How an option or argument is declared.


def argument(help: str, problem: Problem | None = None, **extra: Any) -> Any:  # noqa: A002
    """Declare an argument; see `option`."""
    return typer.Argument(help=help, **_declared(problem, **extra))


def option(help: str, *names: str, problem: Problem | None = None, **extra: Any) -> Any:  # noqa: A002
    """Declare an option.

    Args:
        help: a short sentence; where a value is refused, it says what was expected.
        names: where they do not follow from the parameter's name.
        problem: checks the value, or each of its values.
        extra: of typer; or `known`, the names that complete it, or `complete`, a completion.
    """
    return typer.Option(*names, help=help, **_declared(problem, **extra))


def out_file(help: str, **extra: Any) -> Any:  # noqa: A002
    """Declare `--out FILE`."""
    return option(help, "--out", problem=no_new_file, **extra)


def flag(help: str, *names: str, **extra: Any) -> Any:  # noqa: A002
    """Declare an option without a value."""
    return typer.Option(*names, help=help, **extra)


def label(parameter: Any) -> str:
    """Return how a user writes a parameter: `--images`, or MANIFEST of an argument."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name.upper()).removesuffix("...")


def expected(parameter: Any) -> str:
    """Return the help of a parameter as the end of a sentence; some pairs of releases lose it."""
    words = str(parameter.help or "").rstrip(".")
    return f"; expected: {words[:1].lower()}{words[1:]}" if words else ""


def _check(problem: Problem | None) -> Callable[..., Any] | None:
    if problem is None:
        return None

    def check(parameter: typer.CallbackParam, value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None and (wrong := problem(str(one))):
                # Without advice of its own, the help says what was expected.
                advice = "" if ";" in wrong else expected(parameter)
                raise ArgumentError(f"{label(parameter)} {one}: {wrong}{advice}")
        return value

    return check


def _declared(
    problem: Problem | None,
    *,
    known: Names = tuple,
    complete: Callable[[str], list[str]] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    def names(incomplete: str) -> list[str]:
        return [name for name in known() if name.startswith(incomplete)]

    if problem is not None:
        # Without a name the shell completes files itself, and knows better about ~ and quotes
        # than typer. An option with choices needs nothing: typer completes these.
        extra["autocompletion"] = complete or names
    elif complete is not None:
        extra["autocompletion"] = complete
    return {"callback": _check(problem), **extra}


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def _there(text: str) -> Path:
    """Return the path, with `~` as the shell expands it where no such file is there."""
    path = Path(text)
    try:
        return path.expanduser() if text.startswith("~") and not path.exists() else path
    except RuntimeError:  # no such user
        return path


def _absent(path: Path, noun: str) -> str:
    above = _existing(path.parent)
    if not above.is_dir():
        return f"no such {noun}: {above} is a file"
    if above != path.parent:
        missing = path.parent.relative_to(above).parts[0]
        return f"no such {noun}: {above} has no folder {missing}"
    names = (entry.name for entry in itertools.islice(above.iterdir(), _LISTED))
    return f"no such {noun}{did_you_mean(path.name, names)}"


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _unmakeable(path: Path) -> str:
    above = _existing(path.parent)
    if above.is_dir():
        return ""
    return f"cannot make a folder in {above} (that is a file); choose another place"


# The options and arguments themselves. A required and an optional one share their words.

_MANIFEST = "Manifest, JSON Lines or LLaVA's JSON array."
_IMAGES = "Folder that image paths start from."
_STORE = "Folder or URL of a cache."
_SEALED = "Folder or URL of a sealed cache."
_STUDENT = "Folder of a Hugging Face student."
_BUILD = "where the build found them"
_RUN = "where the run found it"
_RECIPE = "the recipe's"
_PREDICTIONS = "Predictions, JSON Lines."

Manifest = Annotated[Path, argument(_MANIFEST, no_file)]
SomeManifest = Annotated[Path | None, argument(_MANIFEST, no_file)]
RecipeManifest = Annotated[Path | None, option(_MANIFEST, problem=no_file, show_default=_RECIPE)]
RunManifest = Annotated[Path | None, option(_MANIFEST, problem=no_file, show_default=_RUN)]

Images = Annotated[Path, option(_IMAGES, problem=no_folder)]
SomeImages = Annotated[Path | None, option(_IMAGES, problem=no_folder)]
BuildImages = Annotated[Path | None, option(_IMAGES, problem=no_folder, show_default=_BUILD)]
RecipeImages = Annotated[Path | None, option(_IMAGES, problem=no_folder, show_default=_RECIPE)]
RunImages = Annotated[Path | None, option(_IMAGES, problem=no_folder, show_default=_RUN)]

Store = Annotated[str, argument(_STORE, no_store)]
SealedStore = Annotated[str, argument(_SEALED, no_store)]
SealedStores = Annotated[list[str], argument("Folders or URLs of sealed caches.", no_store)]
CacheOption = Annotated[str | None, option(_SEALED, problem=no_store)]

Student = Annotated[Path, argument(_STUDENT, no_student)]
RecipeStudent = Annotated[Path | None, option(_STUDENT, problem=no_student, show_default=_RECIPE)]
RunStudent = Annotated[Path | None, option(_STUDENT, problem=no_student, show_default=_RUN)]

OutStore = Annotated[
    str, option("Folder or URL of the cache to write.", "--out", problem=no_new_store)
]
OutFolder = Annotated[Path, option("Folder to write to.", "--out", problem=no_new_folder)]

Predictions = Annotated[Path, argument(_PREDICTIONS, no_file)]
ManyPredictions = Annotated[list[Path], argument(_PREDICTIONS, no_file)]


Json = Annotated[bool, flag("Print JSON.", "--json")]
Overwrite = Annotated[bool, flag("Replace what an earlier run wrote to --out.")]

Workers = Annotated[
    int | None, option("Processes that read images.", min=0, show_default="CPUs, at most 8")
]
Seed = Annotated[int, option("Seed of what is drawn at random.")]
