"""What the `medalign cache` commands have in common: arguments and exit codes."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..expert_names import is_folder

FAILED = 1
INTERRUPTED = 130

Store = Annotated[str, typer.Argument(help="Folder or URL of the cache.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def stopping(message: str) -> Iterator[None]:
    """Say so on Ctrl-C, SIGTERM and SIGHUP, and end with exit code 130."""
    from ...runtime.signals import interruptible

    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        with suppress(OSError):  # after SIGHUP the terminal may be gone
            typer.echo(f"medalign: {message}", err=True)
        raise typer.Exit(INTERRUPTED) from None


if TYPE_CHECKING:
    from ...teacher_cache.origin import Origin

_PATHS = ("manifest", "images", "weights")
_SHARE = "part"  # the command that builds what is left builds all of it


def retyped(context: typer.Context) -> "Origin | None":
    """Return the origin that a `medalign cache build` command line makes, its paths absolute.

    Only options that were given are in its command: a default of this machine, such as its GPU,
    may be another one where the build goes on. None where a path has what no terminal can show: it
    is a hint, and must not stop a build.
    """
    from ...teacher_cache.origin import Origin
    from ...teacher_cache.schema import TeacherCacheError

    values = _from_anywhere(context.params)
    words = ["medalign", "cache", "build"]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name != _SHARE:
            words += _words(parameter, values[name])
    try:
        return Origin(
            command=tuple(words),
            manifest=values["manifest"],
            images=values["images"],
            expert=values["expert"],
            weights=values["weights"],
        )
    except TeacherCacheError:
        return None


def quoted(words: Sequence[str]) -> str:
    """Return a command line that a shell reads back as `words`."""
    return shlex.join(words)


def _from_anywhere(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a command line with every path absolute."""
    values = dict(given)
    for name in _PATHS:
        if values[name] is not None:
            values[name] = absolute(values[name])
    if is_folder(values["expert"]):
        values["expert"] = absolute(values["expert"])
    if "://" not in values["out"]:
        values["out"] = absolute(values["out"])
    return values


def absolute(path: str | Path) -> str:
    """Return a path that stays true in another folder."""
    return str(Path(path).expanduser().resolve())


def _words(parameter: Any, value: Any) -> Iterator[str]:
    if parameter.param_type_name == "option":
        yield parameter.opts[0]
    if not getattr(parameter, "is_flag", False):
        yield str(value)
