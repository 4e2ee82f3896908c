"""Files that are whole or absent, also after a crash or a loss of power."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"
_ATTEMPTS = 5


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what was there; on disk when this returns.

    Temporary file, fsync, rename, fsync of the folder: a reader meets the old bytes or the new
    ones, never a mixture, and two processes that write the same bytes do not disturb each other.
    """
    for _ in range(_ATTEMPTS):
        with _temporary(path, data) as temporary, contextlib.suppress(FileNotFoundError):
            temporary.replace(path)
            break
        # another process sealed the store just now and swept our temporary file
    else:
        raise FileNotFoundError(f"{path}: temporary files vanish as soon as they are written")
    _sync_folder(path.parent)


def publish_once(path: Path, data: bytes) -> bool:
    """Put `data` at `path` unless something is there already; say whether it was put.

    A hard link cannot replace a file, so of two processes that publish at once one loses and
    knows it. File systems without hard links fall back to a rename.
    """
    for _ in range(_ATTEMPTS):
        with _temporary(path, data) as temporary, contextlib.suppress(FileNotFoundError):
            if not _link(temporary, path):
                return False
            break
        # another process sealed the store just now and swept our temporary file
    else:
        raise FileNotFoundError(f"{path}: temporary files vanish as soon as they are written")
    _sync_folder(path.parent)
    return True


def make_folder(path: Path) -> None:
    """Create `path` and its missing parents, each of them on disk when this returns."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def sweep_partial(folder: Path) -> int:
    """Delete what killed writers left below `folder`, and say how many files that were."""
    leftovers = list(folder.rglob(f"*{PARTIAL}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        if path.exists():
            return False
        temporary.replace(path)
    return True


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    name = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}"
    temporary = path.with_name(name)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # without this a rename may be lost with the power, although the file's bytes are safe
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
