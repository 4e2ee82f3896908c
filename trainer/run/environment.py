"""What a run was made with: command, versions, device, teacher cache."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

from ...teacher_cache.reader import TeacherCache
from ..distributed.ranks import Ranks

_PACKAGES: Final = (
    "medalign", "torch", "transformers", "peft", "deepspeed", "zarr", "numpy", "pillow",
)  # fmt: skip


def environment_of(ranks: Ranks, cache: TeacherCache | None) -> dict[str, Any]:
    """Describe this process and its cache for `environment.json`."""
    device = str(ranks.device)
    if ranks.device.type == "cuda":
        device = torch.cuda.get_device_name(ranks.device)
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "ranks": ranks.world,
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git(),
        "cache": None if cache is None else _cache(cache),
    }


def _cache(cache: TeacherCache) -> dict[str, Any]:
    """Which cache, and its certificate; a run may be judged by that years later."""
    return {
        "store": str(cache.store),
        "rows": len(cache),
        "fingerprint": cache.fingerprint,
        "content_hash": cache.content_hash,
        "licence": cache.card.expert.licence,
        "certificate": None if cache.certificate is None else dict(cache.certificate),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> str | None:
    """Commit of the working folder, where the user's own recipes and scripts live."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
