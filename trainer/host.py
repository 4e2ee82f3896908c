"""What this machine has left: memory, disk, shared memory."""

import os
import shutil
from pathlib import Path
from typing import Final

_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
SHARED: Final = Path("/dev/shm")


def memory_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *(limit for path in _LIMITS if (limit := _number(path)))])


def free_memory_bytes() -> int:
    """Memory that programs can still take; all of it where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return memory_bytes()
    found = {line.split(":")[0]: line.split()[1] for line in lines}
    return min(memory_bytes(), int(found.get("MemAvailable", "0")) * 1024 or memory_bytes())


def free_disk_bytes(path: Path) -> int:
    """Free bytes on the disk that holds a path, or would hold it."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.expanduser().resolve()
    return path if path.exists() else existing(path.parent)


def shared_bytes() -> int | None:
    """Size of the shared memory that worker processes use; None where there is none."""
    return shutil.disk_usage(SHARED).total if SHARED.is_dir() else None


def _number(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0  # "max": no limit
