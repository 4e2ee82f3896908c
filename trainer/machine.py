"""What this machine has left (memory, disk, shared memory), and errors of one that is full."""

import errno
import logging
import os
import resource
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError

from .recipe.recipe import Recipe

_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
SHARED: Final = Path("/dev/shm")


class DeviceMemoryError(RuntimeError):
    """The GPU's memory does not suffice."""


def memory_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *(limit for path in _LIMITS if (limit := _number(path)))])


def free_memory_bytes() -> int:
    """Memory that programs can still take; all of it where the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return memory_bytes()
    entries = {line.split(":")[0]: line.split()[1] for line in lines}
    return min(memory_bytes(), int(entries.get("MemAvailable", "0")) * 1024 or memory_bytes())


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


def of_bytes(count: float) -> str:
    """Write a number of bytes, in units of 1000."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def of_seconds(seconds: float) -> str:
    """Write a duration: milliseconds, seconds, minutes or hours."""
    if 0 < seconds < 0.001:
        return "under 1 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn safetensors' own error into that of the file system.

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


@contextmanager
def device_memory_errors(recipe: Recipe, doing: str) -> Iterator[None]:
    """Turn an out-of-memory error, or one that such an error caused, into advice.

    Args:
        recipe: of the run.
        doing: when it happened, as `step 7`.

    Raises:
        DeviceMemoryError: names what lowers the memory, cheapest first.
    """
    try:
        yield
    except DeviceMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        if not any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__)):
            raise
        raise DeviceMemoryError(
            f"{doing}: the GPU's memory is full{_used()} with data.batch_size "
            f"{recipe.data.batch_size}; {_relief(recipe)}. `medalign train --plan` measures what "
            "a step needs"
        ) from error


def _used() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    own = torch.cuda.max_memory_allocated()
    return f" ({own / 1e9:.1f} GB of {total / 1e9:.1f} GB were this run's, {free / 1e9:.1f} free)"


def _relief(recipe: Recipe) -> str:
    """What lowers the memory of a step, cheapest first; nothing that is done already."""
    ways = []
    if not recipe.student.gradient_checkpointing:
        ways.append("set student.gradient_checkpointing: true")
    if recipe.data.batch_size > 1:
        ways.append(
            "lower data.batch_size and raise data.accumulation by the same factor (the loss stays "
            "the same)"
        )
    if recipe.student.quantize == "none":
        ways.append("set student.quantize: nf4")
    if recipe.deepspeed.config is None and recipe.deepspeed.offload == "none":
        ways.append("set deepspeed.offload: optimizer")
    return ", or ".join([*ways, "lower data.max_length"])


def peak_bytes() -> int:
    """Most memory of the device so far; of the process, where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _peak_resident_bytes()


def resident_bytes() -> int:
    """Memory of this process now, without its data workers; its peak where Linux is not."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _peak_resident_bytes()
    return pages * resource.getpagesize()


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def quiet_libraries() -> None:
    """Set up this process for a command that loads models.

    Called by commands, never on import: transformers imports DeepSpeed by itself, and both look
    at the environment while they are loaded.
    """
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise a warning goes to stdout
    # Tokenizers are used before worker processes are forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # It warns at import on a CPU without AVX512 kernels, which it does not need.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformers.utils import logging as transformers_logging

    talk: Any = transformers_logging
    talk.set_verbosity_error()
    talk.disable_progress_bar()
