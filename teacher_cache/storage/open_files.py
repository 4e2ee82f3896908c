"""Local files that stay open between reads of rows, as many as the system allows.

On cluster file systems opening a file asks a metadata server, which costs more than the row. An
open file stays the file that was opened when another takes its name, so this is for reading rows
of a sealed cache and not for judging what lies in a folder now.
"""

import contextlib
import errno
import os
import resource
from collections import OrderedDict

from .local import LocalStorage, Storage
from .untrusted import DamagedError

_MOST = 4096
_SMALL = 2**20


class OpenFiles:
    """Ranges of the files below a folder; picklable, and safe across fork and between threads."""

    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage
        self._forget()

    def __str__(self) -> str:
        return str(self._storage)

    def __getstate__(self) -> dict[str, object]:
        return {"_storage": self._storage}

    def __setstate__(self, state: dict[str, LocalStorage]) -> None:
        self._storage = state["_storage"]
        self._forget()

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `name` from `start` on, as `Storage` does."""
        if self._pid != os.getpid():
            self._forget()  # a forked child opens its own, and closes its copies of the parent's
        file = self._files.pop(name, None) or self._open(name)
        self._files[name] = file  # the most recently used stand last
        filled = os.preadv(file.descriptor, [buffer], start)
        while filled < len(buffer):  # one call gives at most 2 GiB
            count = os.preadv(file.descriptor, [buffer[filled:]], start + filled)
            if not count:
                raise DamagedError(f"it ends at {start + filled}, too early")
            filled += count

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""
        return self._storage.size(name)

    def _open(self, name: str) -> "_OpenFile":
        if len(self._files) >= self._most:
            self._files.popitem(last=False)
        path = str(self._storage.folder / name)
        try:
            return _OpenFile(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._files.clear()  # others in this process need descriptors too
        return _OpenFile(path)

    def _forget(self) -> None:
        self._pid = os.getpid()
        # a dropped file closes once the last thread that reads from it lets go of it
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = _MOST if soft < 0 else min(_MOST, soft // 4)


class _OpenFile:
    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(AttributeError, OSError):  # not on every system
            # rows are read in random order. A small file is wanted whole, so that one request
            # serves all its rows; in a large one Linux would read ahead of each row in small
            # steps and wait for each, which takes a row of 1 MB three times as long
            small = os.fstat(self.descriptor).st_size <= _SMALL
            advice = os.POSIX_FADV_WILLNEED if small else os.POSIX_FADV_RANDOM
            os.posix_fadvise(self.descriptor, 0, 0, advice)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


def keep_open(storage: Storage) -> "Storage | OpenFiles":
    """Return what reads rows of `storage` fastest."""
    return OpenFiles(storage) if isinstance(storage, LocalStorage) else storage
