"""Is this machine fit: versions, devices, disk, shared memory?"""

import platform
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ...pipeline.hygiene.finding import Check
from ..machine import (
    existing,
    free_disk_bytes,
    free_memory_bytes,
    memory_bytes,
    of_bytes,
    shared_bytes,
)

_NAMED: Final = ("torch", "transformers", "peft", "deepspeed", "zarr")
_LITTLE_DISK: Final = 10_000_000_000
_LITTLE_SHARED: Final = 1_000_000_000


def versions() -> Check:
    """Compare Python and the packages that medalign needs with the bounds that it declares."""
    wrong = []
    bound = metadata("medalign")["Requires-Python"]
    if not SpecifierSet(bound).contains(platform.python_version(), prereleases=True):
        wrong.append(f"python {platform.python_version()}, medalign needs {bound}")
    for line in requires("medalign") or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version_here = installed(needed.name)
        if version_here is None:
            wrong.append(f"{needed.name} is not installed, medalign needs {needed.specifier}")
        elif not needed.specifier.contains(version_here, prereleases=True):
            wrong.append(f"{needed.name} {version_here}, medalign needs {needed.specifier}")
    if wrong:
        return Check("versions", "failed", "; ".join(wrong), "pip install --upgrade medalign")
    named = ", ".join(f"{name} {installed(name)}" for name in _NAMED)
    return Check("versions", "ok", f"medalign {installed('medalign')}, {python()}, {named}")


def installed(package: str) -> str | None:
    """Version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def python() -> str:
    """Name and version of the interpreter."""
    return f"python {platform.python_version()}"


def devices() -> Check:
    """Name the GPUs and what they can do; none is fine."""
    if not torch.cuda.is_available():
        built = f"this torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
        return Check("devices", "ok", f"no GPU, {built or 'a CPU build of torch'}: runs on the CPU")
    names, weak = [], []
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        name = f"{facts.name}, {of_bytes(facts.total_memory)}"
        names.append(name)
        if facts.major < 8:  # bfloat16 is emulated before Ampere
            weak.append(name)
    text = f"CUDA {torch.version.cuda}: {'; '.join(names)}"
    if weak:
        advice = "set student.dtype: fp32, or take a GPU of compute capability 8 or more"
        return Check("devices", "warning", f"{text}; no bf16 on {'; '.join(weak)}", advice)
    return Check("devices", "ok", f"{text}; bf16")


def memory() -> Check:
    """Say how much memory is free."""
    free, whole = free_memory_bytes(), memory_bytes()
    return Check("memory", "ok", f"{of_bytes(free)} free of {of_bytes(whole)}")


def disk(what: str, path: Path) -> Check:
    """Say how much disk is free where runs or caches go.

    Args:
        what: goes there.
        path: need not exist yet.
    """
    free = free_disk_bytes(path)
    text = f"{of_bytes(free)} free for {what} in {existing(path)}"
    if free < _LITTLE_DISK:
        return Check("disk", "warning", text, "free some space, or choose another folder")
    return Check("disk", "ok", text)


def shared_memory(workers: int) -> Check:
    """Is there room for the batches that worker processes pass on?"""
    size = shared_bytes()
    if size is None:
        return Check("shared memory", "ok", "no /dev/shm here")
    text = f"/dev/shm has {of_bytes(size)}"
    if size < _LITTLE_SHARED and workers:
        advice = "give the container more (docker run --shm-size 8g), or set data.workers: 0"
        return Check("shared memory", "warning", f"{text} for {workers} workers", advice)
    return Check("shared memory", "ok", text)


def flash_attention() -> Check:
    """Is FlashAttention installed?"""
    if find_spec("flash_attn") is None:
        text = "the recipe asks for flash_attention_2, flash-attn is not installed"
        advice = "pip install flash-attn, or set student.attention: sdpa"
        return Check("attention", "failed", text, advice)
    return Check("attention", "ok", f"flash-attn {installed('flash-attn')}")


def bitsandbytes() -> Check:
    """Is the package installed that holds weights in 4 bits?"""
    if find_spec("bitsandbytes") is None:
        text = "the recipe asks for student.quantize, bitsandbytes is not installed"
        return Check("quantisation", "failed", text, "pip install 'medalign[qlora]'")
    return Check("quantisation", "ok", f"bitsandbytes {installed('bitsandbytes')}")
