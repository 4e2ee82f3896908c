"""What a user can mend about a conversion."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from huggingface_hub.errors import StrictDataclassError

from ...runtime.checks import Checks
from ..students.family import first_line


class ConvertError(ValueError):
    """A checkpoint cannot be converted with these options."""


CHECKS: Final = Checks(ConvertError)
read_object: Final = CHECKS.read_object


class FruitlessError(ConvertError):
    """Another run with the same source and options would end the same way."""


@contextmanager
def one_line(subject: object) -> Iterator[None]:
    """Turn whatever a library raises on a file's content into one line that begins with `subject`.

    Raises:
        ConvertError: in the place of any other exception of the block.
    """
    try:
        yield
    except ConvertError:
        raise
    except Exception as error:  # libraries raise what they like on content that they do not know
        raise ConvertError(f"{subject}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """First line of a library's message, with its kind where the message alone says little."""
    if isinstance(error, ValueError | TypeError | OSError | StrictDataclassError):
        return first_line(error)
    # tokenizers raises Exception itself, with a message that stands alone
    kind = "" if type(error) is Exception else f"{type(error).__name__}: "
    return kind + first_line(error)


Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Begins a stage of so many bytes, and gives the function that counts them."""
