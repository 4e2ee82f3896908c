"""Rows of a remote store kept in a local folder, shared by all processes of a machine.

When the folder is full, what other caches left in it goes first; rows of this cache stay, and the
rest is read from the server every time. Training reads every row once an epoch in a new order:
evicting the least recently used row would throw away what is needed sooner than its replacement.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...runtime.files import PARTIAL, Draft
from ..format.arrays import CRC_BYTES, crc32c
from ..format.shard_file import Ranges

NEARBY_BYTES = 50 * 10**9
"""How large the folder may become unless a user says otherwise."""
_WHOLE = 2**20
_BLOCK = 4096
_IDLE_SECONDS = 3600.0
_RECOUNT_SECONDS = 600.0
_SIZE_BYTES = 8
_ATTEMPTS = 2
_MOST_SIZES = 100_000
_TOTAL = "total"
_TOTALS = struct.Struct("<Qd")  # bytes of all files, and when they were counted
_NEVER = bytes(_TOTALS.size)


class NearbyFiles:
    """Ranges of the files of a store that does not change; picklable, and safe across fork.

    What is kept is only ever read by `RowReader`, which verifies a checksum of every range and
    has a damaged one forgotten and fetched again. Files of up to 1 MiB are kept whole: those of
    small arrays then take one request a shard instead of one a row.

    Attributes:
        remote: where the store lies.
        folder: where ranges are kept; other stores may share it.
        limit_bytes: of the whole folder.
    """

    def __init__(self, remote: Ranges, folder: Path, limit_bytes: int, identity: str) -> None:
        self.remote = remote
        self.folder = folder
        self.limit_bytes = limit_bytes
        # the identity is a store's own word: with its place, a liar spoils no rows but its own
        name = hashlib.sha256(f"{remote}\n{identity}".encode()).hexdigest()[:32]
        self._home = folder / name
        self._sizes: dict[str, int] = {}
        self._off = False

    def __str__(self) -> str:
        return str(self.remote)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_sizes": {}}

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""
        size = self._sizes.get(name)
        if size is None:
            size = self._kept_size(name)
        if size is None:
            size = self.remote.size(name)
            if size is None:
                return None
            data = size.to_bytes(_SIZE_BYTES, "little")
            self._keep(self._home / name / "size", data + crc32c(data))
        if len(self._sizes) >= _MOST_SIZES:
            self._sizes.clear()
        self._sizes[name] = size
        return size

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `name` from `start` on, nearby ones if there are."""
        size = self.size(name)
        if size is None:
            raise FileNotFoundError("it is missing")
        whole = size <= _WHOLE and start + len(buffer) <= size
        first, length = (0, size) if whole else (start, len(buffer))
        path = self._home / name / f"{first}-{length}"
        if _read_kept(path, length, start - first, buffer):
            return
        data = memoryview(bytearray(length)) if whole else buffer
        self.remote.read_into(name, first, data)
        self._keep(path, data)
        if whole:
            buffer[:] = data[start : start + len(buffer)]

    def forget(self, name: str) -> bool:
        """Drop all that is kept of a file; say whether anything was."""
        self._sizes.pop(name, None)
        folder = self._home / name
        existed = folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        return existed

    def _kept_size(self, name: str) -> int | None:
        data = bytearray(_SIZE_BYTES + CRC_BYTES)
        path = self._home / name / "size"
        if not _read_kept(path, len(data), 0, memoryview(data)):
            return None
        size = bytes(data[:_SIZE_BYTES])
        return int.from_bytes(size, "little") if crc32c(size) == data[_SIZE_BYTES:] else None

    def _keep(self, path: Path, data: bytes | memoryview) -> None:
        if self._off:
            return
        try:
            if not self._reserve(_on_disk(len(data))):
                return
            for _ in range(_ATTEMPTS):
                with contextlib.suppress(FileNotFoundError):  # removed by another worker just now
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with Draft(path) as draft:  # no fsync: what is lost is read again
                        draft.write(data)
                        draft.place()
                    break
        except OSError as error:
            self._off = True
            warnings.warn(
                f"rows of {self} are no longer kept in {self.folder} ({error}); "
                "they are read from the server each time",
                RuntimeWarning,
                stacklevel=2,
            )

    def _reserve(self, size: int) -> bool:
        """Add `size` bytes to the total; say no when there is no room for them."""
        with _locked(self.folder / _TOTAL) as file:
            total, counted = _TOTALS.unpack(os.pread(file, _TOTALS.size, 0) or _NEVER)
            full, now = total + size > self.limit_bytes, time.time()
            if not counted or (full and now - counted > _RECOUNT_SECONDS):
                total, counted = self._make_room(size), now
            fits = bool(total + size <= self.limit_bytes)
            os.pwrite(file, _TOTALS.pack(total + size * fits, counted), 0)
        return fits

    def _make_room(self, size: int) -> int:
        """Count all files, delete idle ones of other caches, and return the bytes that remain."""
        total, strangers = 0, []
        for path, status in _files(self.folder):
            total += _on_disk(status.st_size)
            if not path.is_relative_to(self._home) or path.name.endswith(PARTIAL):
                strangers.append((status.st_mtime, status.st_size, path))
        for used, stored, path in sorted(strangers):
            if total + size <= self.limit_bytes or time.time() - used < _IDLE_SECONDS:
                break
            path.unlink(missing_ok=True)
            total -= _on_disk(stored)
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()
        return total


def _read_kept(path: Path, length: int, start: int, buffer: memoryview) -> bool:
    """Fill `buffer` from a kept range of `length` bytes; say no when it is not kept whole."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if status.st_size != length or os.preadv(descriptor, [buffer], start) != len(buffer):
            return False
        if time.time() - status.st_mtime > _IDLE_SECONDS / 2:
            os.utime(path)  # somebody still uses it
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # forgotten, or renamed just now
                if name != _TOTAL:
                    path = Path(parent, name)
                    yield path, path.stat()


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # closing the file lets go of it
        yield descriptor
    finally:
        os.close(descriptor)
