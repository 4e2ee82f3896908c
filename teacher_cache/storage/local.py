"""Files of a store: below one folder or URL, read in ranges, written whole or not at all.

Names are relative POSIX paths below the store, such as `features/c.3.0.0`; the empty name is the
store itself. Everything else in this package goes through a `Storage`, so that a local folder and
an object store keep the same promises.
"""

import contextlib
import errno
import hashlib
import json
import os
import resource
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...runtime.files import PARTIAL, make_folder, publish_once, sweep_partial, write_durably
from .untrusted import DamagedError, TeacherCacheError

_PIECE = 2**23
_ATTEMPTS = 5
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_OPEN = 4096
_SMALL = 2**20


class Storage(Protocol):
    """Files of one store. Picklable; no handle outlives a fork or travels with a pickle.

    Attributes:
        url: what a user typed to name the store, and what messages say.
    """

    @property
    def url(self) -> str:
        """What a user typed to name the store; `str(storage)` is the same."""

    def read(self, name: str, limit: int) -> bytes:
        """Return the file `name`.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedError: it is longer than `limit` bytes; no more than that was read.
        """

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `name` from `start` on.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedError: it ends before the buffer is full.
        """

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""

    def write(self, name: str, data: bytes) -> None:
        """Put `data` at `name`, replacing what was there; durable when this returns.

        Readers meet the old bytes or the new ones, never a mixture.
        """

    def publish(self, name: str, data: bytes) -> bool:
        """Put `data` at `name` unless something is there already; return whether it was put."""

    def delete(self, name: str) -> None:
        """Delete a file; one that is absent is fine."""

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Yield name and size of every file below `folder`, at any depth.

        Raises:
            TeacherCacheError: a folder below the store is a link.
        """

    def sweep(self) -> int:
        """Delete what killed writers left, and say how many files that were."""

    def exists(self) -> bool:
        """Return whether anything at all is there."""


@dataclass(frozen=True)
class LocalStorage:
    """A folder of a local or network file system.

    Attributes:
        folder: the store.
    """

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def url(self) -> str:
        """The folder, as it was given."""
        return str(self.folder)

    def read(self, name: str, limit: int) -> bytes:
        """Return the file `name`."""
        with _absent_as_one_error(), (self.folder / name).open("rb") as file:
            # asked for the limit, Python would allocate all of it
            data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
        if len(data) > limit:
            raise DamagedError(f"{self}/{name} is longer than the {limit} bytes it may have")
        return data

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `name` from `start` on."""
        with _absent_as_one_error(), (self.folder / name).open("rb", buffering=0) as file:
            file.seek(start)
            filled = 0
            while filled < len(buffer):  # one read gives at most 2 GiB
                count = file.readinto(buffer[filled:])
                if not count:
                    raise DamagedError(f"{self}/{name} ends at {start + filled}, too early")
                filled += count

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""
        path = self.folder / name
        try:
            return path.stat().st_size if path.is_file() else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Put `data` at `name`: temporary file, fsync, rename, fsync of the folder."""
        path = self.folder / name
        for attempt in range(_ATTEMPTS):
            make_folder(path.parent)
            try:
                write_durably(path, data)
                break
            except FileNotFoundError:  # `delete` removed the folder just now
                if attempt == _ATTEMPTS - 1:
                    raise

    def publish(self, name: str, data: bytes) -> bool:
        """Put `data` at `name` unless something is there already; return whether it was put."""
        path = self.folder / name
        make_folder(path.parent)
        return publish_once(path, data)

    def delete(self, name: str) -> None:
        """Delete a file, and the folders below the store that it leaves empty."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            for parent in path.parents:
                if parent == self.folder:
                    break
                parent.rmdir()

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Yield name and size of every file below `folder`, at any depth."""
        path = self.folder / folder
        if folder and path.is_symlink():  # a stranger's may lead anywhere, and seals delete files
            raise TeacherCacheError(
                f"{path} is a link; put the folder that it leads to in its place, "
                "only the cache as a whole may lie behind a link"
            )
        # scandir and plain text: with paths as objects 25,000 files take a second
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                yield from self.files(name)
            elif entry.is_file():
                with contextlib.suppress(FileNotFoundError):  # a writer's, renamed just now
                    yield name, entry.stat().st_size

    def sweep(self) -> int:
        """Delete what killed writers left, and say how many files that were."""
        return sweep_partial(self.folder)

    def exists(self) -> bool:
        """Return whether anything at all is there."""
        return self.folder.exists()


class OpenFiles:
    """Local files that stay open between reads of rows, as many as the system allows.

    On cluster file systems opening a file asks a metadata server, which costs more than the row.
    An open file stays the file that was opened when another takes its name, so this is for
    reading rows of a sealed cache and not for checking what a folder holds now. Picklable, and
    safe across fork and between threads.
    """

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
        self._most = _MOST_OPEN if soft < 0 else min(_MOST_OPEN, soft // 4)


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


def keep_open(storage: Storage) -> Storage | OpenFiles:
    """Return what reads rows of `storage` fastest."""
    return OpenFiles(storage) if isinstance(storage, LocalStorage) else storage


def open_storage(store: Path | str | Storage) -> Storage:
    """Return the storage of a folder or URL; a storage is returned as it is.

    Raises:
        TeacherCacheError: no library for such a URL is installed.
    """
    if not isinstance(store, str | Path):
        return store
    if "://" in str(store):
        try:
            from .remote import RemoteStorage
        except ImportError as error:
            raise TeacherCacheError(
                f"{store}: remote stores need more packages ({error}); pip install fsspec"
            ) from error
        remote: Storage = RemoteStorage(str(store))
        return remote
    return LocalStorage(Path(store))


def read_json(storage: Storage, name: str, limit: int) -> Any:
    """Read a JSON file of at most `limit` bytes.

    Raises:
        TeacherCacheError: missing; a DamagedError if too long or not JSON.
    """
    try:
        return json.loads(storage.read(name, limit))
    except FileNotFoundError as error:
        raise TeacherCacheError(f"{storage}/{name} is missing") from error
    except DamagedError as error:
        raise DamagedError(f"{storage}/{name} is damaged: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{storage}/{name} is damaged: {error}") from error


def sha256_of(storage: Storage, name: str) -> str:
    """Return the SHA-256 (hex) of a file, read in pieces.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: it became shorter meanwhile.
    """
    if (size := storage.size(name)) is None:
        raise FileNotFoundError(f"{storage}/{name}")
    sha = hashlib.sha256()
    piece = memoryview(bytearray(min(size, _PIECE)))
    for start in range(0, size, _PIECE):
        part = piece[: size - start]
        storage.read_into(name, start, part)
        sha.update(part)
    return sha.hexdigest()


@contextlib.contextmanager
def explaining_disk_errors(storage: Storage, doing: str) -> Iterator[None]:
    """Turn an OSError into an error that names the store, what is safe, and what to run."""
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        raise TeacherCacheError(
            f"{'no space left' if full else 'failed'} while {doing} {storage} ({error}); "
            f"committed shards stay; {'make room' if full else 'mend the cause'} and run the same "
            "command again to continue"
        ) from error


def is_leftover(name: str) -> bool:
    """Return whether a file is what a killed writer leaves."""
    return name.endswith(PARTIAL)


@contextlib.contextmanager
def _absent_as_one_error() -> Iterator[None]:
    try:
        yield
    except (NotADirectoryError, IsADirectoryError) as error:
        raise FileNotFoundError(*error.args) from error
