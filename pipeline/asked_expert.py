"""From what a command line asks for to an expert in memory."""

import os
from pathlib import Path
from typing import Literal

import torch

from ..teacher_cache.schema import FeatureChoice
from .experts import Expert, load_expert

DtypeName = Literal["bf16", "fp32"]
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_asked(
    name: str,
    weights: Path | None,
    features: FeatureChoice,
    device: str,
    dtype: DtypeName | None,
) -> Expert:
    """Load an expert on the device of this process: `auto` is its own GPU, or the CPU.

    Without a dtype it computes in bfloat16 on a GPU and in float32 elsewhere.

    Raises:
        ExpertError: see `load_expert`.
    """
    if device == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        count = torch.cuda.device_count()
        device = f"cuda:{local % count}" if count else "cpu"
    kind = _DTYPES[dtype or ("bf16" if device.startswith("cuda") else "fp32")]
    return load_expert(name, weights, features=features, device=device, dtype=kind)


def dtype_name(dtype: str) -> DtypeName:
    """Return how a command line names a card's dtype."""
    return "bf16" if dtype == "bfloat16" else "fp32"


def describe(expert: Expert) -> str:
    """Say in one line what an expert is and where it runs."""
    card = expert.card
    kind = str(expert.dtype).removeprefix("torch.")
    return (
        f"expert {card.name}: {card.image_size} px, {card.grid} patches of width {card.width}, "
        f"{kind} on {expert.device}"
    )
