"""Files and folders that are whole or absent, also after a kill, a full disk or a loss of power.

Whatever is written grows beside its place under a hidden name and is renamed when it is whole. A
kill leaves the hidden name behind; the next run recognises it by its ending and sweeps it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Self

from .checks import UntrustedError

PARTIAL: Final = ".partial"
"""Ending of a file that is being written."""
_WRITING: Final = ".writing"  # of a folder
_REPLACED: Final = ".replaced"  # of a folder that another one takes the place of
_DROPPED: Final = ".dropped"  # of a folder that is being deleted
_REPLACED_ONCE: Final = ".old"  # by exports of earlier versions
# Drafts of `data prepare` were not hidden before, and bore the number of the process alone.
_DRAFT: Final = re.compile(rf"\.?(.+)\.[0-9]+(?:-[0-9a-f]+)?{re.escape(PARTIAL)}")
_ATTEMPTS: Final = 5
_BLOCK: Final = 1 << 20


class Draft:
    """A file that grows beside its place and is put there when it is whole.

    It is locked while it is open, so that `is_held` tells a living run's draft from a leftover.

    Attributes:
        path: of the file it becomes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")

    def __enter__(self) -> Self:
        with naming(self._draft):
            self._file: BinaryIO = self._draft.open("xb")
        lock(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported by `write` or `finish`
            self._file.close()
        self._draft.unlink(missing_ok=True)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with naming(self.path):
            self._file.write(data)

    def finish(self) -> None:
        """Bring everything to the disk, which may be full; placing it needs no more room."""
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    @property
    def sha256(self) -> str:
        """SHA-256 in hex of what was written so far, read back from the file."""
        with naming(self.path):
            self._file.flush()
        return sha256_file(self._draft)

    def place(self) -> bool:
        """Rename the file to its place, over what is there."""
        with naming(self.path):
            self._file.close()
            self._draft.replace(self.path)
        return True

    def place_once(self) -> bool:
        """Put the file at its place unless something is there; return whether it was put.

        A hard link cannot replace a file, so of two processes that publish at once one loses and
        knows it. File systems without hard links fall back to a rename.
        """
        try:
            os.link(self._draft, self.path)
        except FileExistsError:
            return False
        except OSError:
            return not self.path.exists() and self.place()
        return True


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what was there; on disk when this returns.

    Draft, fsync, rename, fsync of the folder: a reader meets the old bytes or the new ones, never
    a mixture, and two processes that write the same bytes do not disturb each other.
    """
    _write(path, data, Draft.place)


def publish_once(path: Path, data: bytes) -> bool:
    """Put `data` at `path` unless something is there already; return whether it was put."""
    return _write(path, data, Draft.place_once)


def drafted(name: str) -> str:
    """Return the name of the file that a draft of this name becomes; empty if it is no draft."""
    match = _DRAFT.fullmatch(name)
    return "" if match is None else match[1]


def is_held(draft: Path) -> bool:
    """Return whether a run that is still alive writes this draft."""
    try:
        with draft.open("r+b") as file:
            return not lock(file, without_locks=False)
    except OSError:
        return True  # gone, or somebody else's


def lock(file: IO[Any], *, without_locks: bool = True) -> bool:
    """Lock a file for as long as it is open; return False if another process holds it.

    The lock goes with its process, however that ends. Forked processes inherit it.

    Args:
        file: open, in any mode.
        without_locks: what to return on a file system that knows no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return without_locks
    return True


def sweep_partial(folder: Path) -> int:
    """Delete every draft below `folder`, held or not; return how many there were."""
    leftovers = list(folder.rglob(f"*{PARTIAL}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def append(path: Path, data: bytes) -> None:
    """Add bytes at the end of a file, all of them or none.

    Raises:
        OSError: the disk is full, say; the file is as it was.
    """
    before = path.stat().st_size if path.exists() else 0
    try:
        with naming(path), path.open("ab", buffering=0) as file:
            while data:  # a disk that fills up takes a part
                data = data[file.write(data) :]
    except OSError:
        if path.exists():
            os.truncate(path, before)  # half a line would swallow the next one
        raise


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add lines of JSON at the end of a file, all of them or none.

    They survive the death of the process. No fsync, which costs more than a training step.

    Raises:
        OSError: the disk is full, say; the file is as it was.
        ValueError: a number is not finite.
    """
    append(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read every whole line of JSON; none when there is no file.

    Raises:
        UntrustedError: a line is damaged. A last one that a kill tore is left out instead.
    """
    values = []
    data = path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UntrustedError(f"{path}: line {number} is damaged: {error}") from error
    return values


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path, advance: Callable[[int], object] = lambda _bytes: None) -> str:
    """Return the SHA-256 of a file in hex, read in pieces.

    Args:
        path: of the file.
        advance: called with the number of bytes of each piece that was read.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with naming(path), path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            advance(size)
    return digest.hexdigest()


def file_identity(
    path: Path, advance: Callable[[int], object] = lambda _bytes: None
) -> dict[str, Any]:
    """Return what tells whether a file changed: `bytes`, its size, and `sha256`."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path, advance)}


def sync_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Bring every file below a folder to the disk; return the identity of each by its path."""
    identities = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _sync(path)
        identities[path.relative_to(folder).as_posix()] = file_identity(path)
    return identities


def make_folder(path: Path) -> None:
    """Create `path` and its missing parents, each of them on disk when this returns."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path` that becomes `path` when the block ends well.

    When the block fails, by a full disk or Ctrl-C too, nothing is left of it and what was at
    `path` stays. What a kill leaves is swept by the next call for the same path.
    """
    path = path.resolve()
    draft, replaced = _beside(path, _WRITING), _beside(path, _REPLACED)
    make_folder(path.parent)
    if replaced.is_dir() and not path.exists():  # a kill between the two renames
        replaced.rename(path)
    leftovers = (draft, replaced, _beside(replaced, _DROPPED), _beside(path, _REPLACED_ONCE))
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        put_folder(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def put_link(link: Path, target: Path | str) -> None:
    """Let a symbolic link lead to `target`, replacing the one that was there."""
    draft = link.with_name(f".{link.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)


def put_folder(draft: Path, path: Path) -> None:
    """Rename a fully written folder to `path`; what was there is deleted after that.

    `recover_folders` finishes what a kill between two of the renames left.
    """
    replaced = _beside(path, _REPLACED)
    if path.exists():
        path.rename(replaced)
    draft.rename(path)
    _sync(path.parent)
    if replaced.exists():
        drop_folder(replaced)


def drop_folder(folder: Path) -> None:
    """Delete a folder; it has another name before its first file is gone."""
    dropped = _beside(folder, _DROPPED)
    shutil.rmtree(dropped, ignore_errors=True)
    folder.rename(dropped)
    shutil.rmtree(dropped)


def recover_folders(parent: Path, draft: Path, is_whole: Callable[[Path], bool]) -> None:
    """Finish what a killed process began: replacing, then deleting.

    Args:
        parent: of the folders that were put and dropped.
        draft: the folder that was to be put, if it is still there; it is deleted, or becomes the
            one that it was to replace.
        is_whole: whether a folder holds all that was written into it.
    """
    for replaced in parent.glob(f".*{_REPLACED}"):
        path = parent / replaced.name[1 : -len(_REPLACED)]
        whole = [folder for folder in (draft, replaced) if is_whole(folder)]
        if whole and not path.exists():
            whole[0].rename(path)
    for leftover in (draft, *parent.glob(f".*{_REPLACED}"), *parent.glob(f".*{_DROPPED}")):
        if leftover.exists():
            drop_folder(leftover)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the file system name the file, which `write` and `close` do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _write(path: Path, data: bytes, place: Callable[[Draft], bool]) -> bool:
    for _ in range(_ATTEMPTS):
        # Another process that seals the store sweeps drafts, and may take ours: write it again.
        with Draft(path) as draft, contextlib.suppress(FileNotFoundError):
            draft.write(data)
            draft.finish()
            placed = place(draft)
            if placed:
                _sync(path.parent)
            return placed
    raise FileNotFoundError(f"{path}: temporary files vanish as soon as they are written")


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name.removeprefix('.')}{ending}")


def _sync(path: Path) -> None:
    # Of a folder: without this a rename may be lost with the power, although the bytes are safe.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
