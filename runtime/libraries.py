"""Names of other libraries that a release may move, looked up where they are used.

A name that is gone then ends the command that needs it with one line, not the import of every
command. `tests/test_libraries.py` looks at each of them once.
"""

import inspect
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

ADVICE: Final = "install the versions that were tested together: pip install -c constraints.txt"
"""How the message of every `LibraryError` ends, up to the name of the library."""


class LibraryError(ValueError):
    """An installed library lacks what medalign calls."""

    def __init__(self, library: str, change: str) -> None:
        try:
            release = f"{library} {version(library)}"
        except PackageNotFoundError:
            release = library
        super().__init__(f"{release} {change}; {ADVICE} {library}")


def look_up(library: str, module: str, name: str) -> Any:
    """Return `name` of a module of a library.

    Args:
        library: name of the distribution, as pip knows it.
        module: full name of the module.
        name: of what the module holds; may be dotted.

    Raises:
        LibraryError: the module or the name is gone.
    """
    try:
        value: Any = import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError):
        raise LibraryError(library, f"has no {module}.{name}") from None
    return value


def check_call(library: str, function: Any, options: Sequence[str], *, positional: int = 0) -> None:
    """Check that a function can be called with so many arguments and these keywords.

    Raises:
        LibraryError: it cannot.
    """
    try:
        inspect.signature(function).bind(*[None] * positional, **dict.fromkeys(options))
    except TypeError as error:
        name = f"{function.__module__}.{function.__qualname__}"
        raise LibraryError(library, f"calls {name} in another way ({error})") from None
