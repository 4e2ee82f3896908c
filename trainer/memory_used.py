"""How much memory this process takes, on the device and on the host."""

import resource
import sys
from pathlib import Path

import torch


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
