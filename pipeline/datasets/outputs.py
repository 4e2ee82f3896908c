"""The files that a run writes: drafted beside their place, put there when all are whole."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


class Draft:
    """A file under a temporary name, with the SHA-256 of what was written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._draft = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        with naming(self._draft):
            self._file = self._draft.open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk has said so already
            self._close()
        self._draft.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        assert self._file is not None
        with naming(self.path):
            self._file.write(data)
        self._digest.update(data)

    def place(self) -> None:
        """Put the file where it belongs."""
        with naming(self.path):
            self._close()
            self._draft.replace(self.path)

    def finish(self) -> None:
        """Hand everything to the file system, which may say that the disk is full."""
        with naming(self.path):
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the file system name the file, which `write` and `close` do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
