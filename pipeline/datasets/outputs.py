"""The files that a run writes: drafted beside their place, put there when all are whole."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ..runtime.progress import Progress


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
        _hold(self._file)
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
        """Bring everything to the disk, which may be full; `place` is a renaming then."""
        assert self._file is not None
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def is_held(draft: Path) -> bool:
    """Return whether a run that is still alive writes this draft."""
    try:
        with draft.open("r+b") as file:
            return not _hold(file)
    except OSError:
        return True  # gone, or somebody else's


def _hold(file: BinaryIO) -> bool:
    """Lock a draft for as long as it is open, so that others see that this run is alive."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another run's, or a file system without locks
        return False
    return True


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_contents(folder: Path, progress: Progress, paths: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of files in a folder, by path; what cannot be read is left away."""
    found = {}
    with progress.stage("reading images to tell equal ones", total=len(paths)):
        for path in paths:
            with contextlib.suppress(OSError):
                found[path] = digest_of(folder / path)
            progress.advance(1)
    return found


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the file system name the file, which `write` and `close` do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
