"""Command line: parse arguments, call one function, print its result."""

import errno
import itertools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import FrameType
from typing import Annotated, Any, Final, NoReturn, cast

import typer
from typer.core import TyperGroup

from . import __version__
from .demo.commands import demo
from .eval.commands.bench import bench
from .eval.commands.eval import app as eval_app
from .eval.commands.figures import cache_show
from .pipeline.commands.cache import cache
from .pipeline.commands.prepare_data import data
from .runtime.arguments import did_you_mean, expected, flag, label
from .runtime.signals import REPEATED, handled_by
from .trainer.commands.doctor import doctor
from .trainer.commands.export import export
from .trainer.commands.recipes import recipes
from .trainer.commands.student import student
from .trainer.commands.train import train

INTERRUPTED: Final = "interrupted; run the same command again to continue"

BUG: Final = 70
"""Exit code of an error that nobody foresaw; never 1, after which scripts may continue."""

_SOON: Final = 0.05  # seconds

# Typer brings click with it in some releases and imports it in others; its own errors, and
# those of no other library, are above this one.
_USAGE_ERROR: Final = cast(
    type[Exception],
    next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"),
)


class Interrupted(Exception):  # noqa: N818 - no error
    """Stand in for KeyboardInterrupt, which Typer ends without a message."""


class Commands(TyperGroup):
    """The commands, with wrong usage in one line and interruptions left for `main` to print."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; wrong usage is one line and exit code 2, as all wrong input."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except _USAGE_ERROR as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed by now
                raise SystemExit(2) from None
            _fail(_usage(error, extra.get("args") or sys.argv[1:]), 2)
        raise SystemExit(code)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the words of the command line."""
        try:
            return super().make_context(*args, **extra)
        except KeyboardInterrupt:
            raise Interrupted from None

    def invoke(self, ctx: Any) -> Any:  # click's Context, which typer brings with it or not
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Teach a medical vision-language model where to look, from a cached CLIP expert.",
)
app.command()(demo)
app.command()(doctor)
app.add_typer(cache, name="cache")
cache.command("show")(cache_show)
app.command()(train)
app.command()(export)
app.add_typer(recipes, name="recipes")
app.add_typer(student, name="student")
app.add_typer(eval_app, name="eval")
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"medalign {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, flag("Show the traceback of an error.", "--debug")] = False,
    version: Annotated[
        bool, flag("Show the version.", "--version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Teach a medical vision-language model where to look, from a cached CLIP expert."""


def main() -> None:
    """Run the command line: what a user can mend is one line on stderr and exit code 2.

    An error that reports a failed check is a ValueError too, and has its own `exit_code`.
    """
    debug = "--debug" in sys.argv[1:]
    # `--debug` may stand anywhere; the `deepspeed` launcher adds what LOCAL_RANK says already.
    words = [word for word in sys.argv[1:] if word != "--debug"]
    sys.argv[1:] = [word for word in words if not word.startswith("--local_rank=")]
    if any(not word and before != "--part" for before, word in pairwise(["", *sys.argv[1:]])):
        # Path("") would be the current folder; --part "" is an unset variable of a script.
        _fail("an argument is empty; give it a value, or leave the option away", 2)
    # Nothing is ever fetched, also by libraries that would like to.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        with _interruptible():
            app()
    except (Interrupted, KeyboardInterrupt):
        _fail(INTERRUPTED, 130)
    except Exception as error:
        message = _explain(error)
        if debug or not message:
            traceback.print_exc()
        if not message:
            _fail("this is a bug of medalign; please report what is above", BUG)
        wrong_input = 2 if isinstance(error, ValueError | OSError) else 1
        _fail(message, getattr(error, "exit_code", wrong_input))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into KeyboardInterrupt, one that nothing swallows.

    Python drops what is raised while it destroys an object; there it is raised again a moment
    later, in the command itself.
    """
    interrupt, hook = _interrupter(os.getpid()), sys.unraisablehook

    def again(about: "sys.UnraisableHookArgs") -> None:
        if about.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, _SOON)
        else:
            hook(about)

    alarm = signal.signal(signal.SIGALRM, interrupt)
    sys.unraisablehook = again
    try:
        with handled_by(interrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = hook


def _interrupter(process: int) -> Callable[[int, FrameType | None], None]:
    """Return what a signal does in a process: raise KeyboardInterrupt.

    Not while torch is imported: nothing is begun then, and an exception inside its C++ start
    aborts with a core dump. In processes that were forked from this one, signals end them.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        spec = getattr(sys.modules.get("torch"), "__spec__", None)
        if getattr(spec, "_initializing", False):
            os.write(2, f"medalign: {INTERRUPTED}\n".encode())
            os._exit(130)
        for repeated in REPEATED:  # schedulers send them more than once
            signal.signal(repeated, signal.SIG_IGN)
        raise KeyboardInterrupt

    return interrupt


def _usage(error: Any, words: Sequence[str]) -> str:
    """Say in one line what is wrong with a command line, and what is near.

    Click's and typer's releases word it differently; what is not recognised here stays as it is.
    """
    context, parameter = error.ctx, getattr(error, "param", None)
    text = " ".join(error.format_message().split()).rstrip(".")
    problem = text[:1].lower() + text[1:]
    if context is None:
        return problem
    if match := re.match(r"No such command '(.*?)'", text):
        near = did_you_mean(match[1], context.command.commands)
        problem = f"unknown command {match[1]}{near}"
    elif type(error).__name__ == "NoSuchOption":
        options = context.command.params
        known = [name for option in options for name in option.opts + option.secondary_opts]
        problem = f"unknown option {error.option_name}{did_you_mean(error.option_name, known)}"
    elif type(error).__name__ == "MissingParameter":
        problem = f"{label(parameter)} is missing{expected(parameter)}"
    elif parameter is not None:
        problem = f"{_as_typed(label(parameter), words)}: {_refusal(error.message)}"
    path = context.command_path
    advice = "" if problem.endswith("?") else f"; see {path} --help"
    # It begins with "medalign", or with "python -m medalign".
    return f"{path.partition('medalign')[2].strip()}: {problem}{advice}".lstrip(": ")


def _as_typed(name: str, words: Sequence[str]) -> str:
    """Return an option with its value, as it stands in a command line."""
    for word, value in itertools.pairwise([*words, ""]):
        if word == name:
            return f"{name} {value}"
        if word.startswith(f"{name}="):
            return word
    return name


def _refusal(message: str) -> str:
    """Return why a value is refused, and which of the choices is near it."""
    text = " ".join(message.removeprefix("Value error, ").split()).rstrip(".")
    match = re.match(r"'(.*?)' is not one of (.*)", text)
    near = did_you_mean(match[1], re.findall(r"'(.*?)'", match[2])) if match else ""
    return f"{text[:1].lower()}{text[1:]}{near}"


def _explain(error: Exception) -> str:
    """One line for what the user can mend; an empty string for a bug."""
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        hint = "; free some space and run the same command again" * (error.errno == errno.ENOSPC)
        return f"{file}{error.strerror or error}{hint}"
    if type(error).__module__.startswith("medalign."):
        return str(error).strip()
    return ""


def _fail(message: str, code: int) -> NoReturn:
    with suppress(OSError):  # after SIGHUP the terminal may be gone
        typer.echo(f"medalign: {message}", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
