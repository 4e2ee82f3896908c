"""The most memory that one piece of work takes, of the GPU or of this process."""

from pathlib import Path
from typing import Final

import torch

from ...trainer.memory_used import peak_bytes

_CLEAR: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")


def begin_peak(device: torch.device) -> None:
    """Forget earlier peaks, where the system can: elsewhere a peak is the process's own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return


def peak_since(device: torch.device) -> int:
    """Most bytes since `begin_peak`: allocated on the GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return peak_bytes()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(found[0]) * 1024 if found else peak_bytes()
