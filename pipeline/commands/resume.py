"""How a stopped `medalign cache` or `medalign data` command is run again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from ..expert_names import is_folder

if TYPE_CHECKING:
    from ...teacher_cache.origin import Origin

FAILED: Final = 1
INTERRUPTED: Final = 130

_PATHS = ("manifest", "images", "weights")
_SHARE = "part"  # the command for the shards that are pending builds all of them


@contextmanager
def stopping(message: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, SIGTERM or SIGHUP print the message, and end with exit code 130."""
    from ...runtime.signals import interruptible

    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        with suppress(OSError):  # after SIGHUP the terminal may be gone
            typer.echo(f"medalign: {message()}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def origin_of(context: typer.Context) -> "Origin | None":
    """Return the origin that a `medalign cache build` command line makes, its paths absolute.

    Its command has only the options that the user gave: a default of this machine, such as its
    GPU, may differ where the build is continued. None where a path has characters that no terminal
    can show: the command is a hint, and must not stop a build.
    """
    from ...teacher_cache.origin import Origin
    from ...teacher_cache.schema import TeacherCacheError

    values = _absolute_paths(context.params)
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


def _absolute_paths(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a command line with every path absolute."""
    values = dict(parameters)
    for name in _PATHS:
        if values[name] is not None:
            values[name] = _absolute(values[name])
    if is_folder(values["expert"]):
        values["expert"] = _absolute(values["expert"])
    if "://" not in values["out"]:
        values["out"] = _absolute(values["out"])
    return values


def _absolute(path: str | Path) -> str:
    """Return a path that stays true in another folder."""
    return str(Path(path).expanduser().resolve())


def _words(parameter: Any, value: Any) -> Iterator[str]:
    if parameter.param_type_name == "option":
        yield parameter.opts[0]
    if not getattr(parameter, "is_flag", False):
        yield str(value)
