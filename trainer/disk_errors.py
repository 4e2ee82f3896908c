"""safetensors has an error type of its own for what the file system says."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn safetensors' own error into what the file system said.

    Args:
        folder: that is written to.

    Raises:
        OSError: the disk is full, or failed.
    """
    try:
        yield
    except SafetensorError as error:
        full = "No space left" in str(error)
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, "no space left" if full else str(error), str(folder)) from error
