"""What follows from a recipe on this machine and these ranks: computed once, then carried.

`prepare` computes it once in every process; whatever needs one of these settings reads it here.
Computed twice, two answers could differ: the machine is looked at, and DeepSpeed's file is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Final, cast

import torch

from .distributed.zero_config import zero_config, zero_stage
from .memory import Stage
from .recipe.recipe import Recipe, RecipeError
from .students.family import Family

_FLASH: Final = "flash_attention_2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """Settings of a run that no key of its recipe holds by itself.

    Attributes:
        world: ranks.
        gpu: the ranks compute on GPUs.
        dtype: of weights, activations and pixels; bfloat16 has float32 masters.
        attention: name of the attention implementation of every layer.
        micro_steps: micro-batches of a step on one rank.
        per_step: conversations of a step, over all ranks.
        zero: DeepSpeed's configuration, not to be changed.
        stage: of ZeRO.
    """

    world: int
    gpu: bool
    dtype: torch.dtype
    attention: str
    micro_steps: int
    per_step: int
    zero: Mapping[str, Any]
    stage: Stage

    @property
    def precision(self) -> str:
        """Name of `dtype`, as the run folder holds it."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @property
    def flash(self) -> bool:
        """Whether layers run FlashAttention."""
        return self.attention == _FLASH

    def on_gpu(self, recipe: Recipe) -> "Derived":
        """The same run on GPUs, for figures by formula; a machine without one says little else."""
        return replace(self, gpu=True, dtype=_dtype(recipe, gpu=True))


def derive(recipe: Recipe, world: int, family: Family | None = None) -> Derived:
    """Settle what a recipe leaves to the machine, and refuse what cannot be trained in.

    Args:
        recipe: with the accumulation of these ranks, from `for_ranks`.
        world: ranks.
        family: of the student; None where none was read, which leaves FlashAttention out.

    Raises:
        RecipeError: DeepSpeed's file cannot be used, or its stage does not train in this number
            format; names both keys.
    """
    gpu, data = torch.cuda.is_available(), recipe.data
    dtype = _dtype(recipe, gpu=gpu)
    zero = zero_config(recipe, bf16=dtype == torch.bfloat16, world=world)
    stage = zero_stage(zero)
    if stage == 0 and dtype == torch.bfloat16:
        # DeepSpeed's bf16 wrapper of stage 0 steps Adam once on zeros before training.
        raise RecipeError(
            "bf16 (student.dtype, auto on a GPU) needs deepspeed.stage 1, 2 or 3, got 0; or set "
            "student.dtype: fp32"
        )
    if stage == 3 and recipe.student.quantize != "none":
        raise RecipeError(
            f"student.quantize: {recipe.student.quantize} needs deepspeed.stage 0, 1 or 2: "
            "4-bit weights cannot be cut into parts"
        )
    return Derived(
        world=world,
        gpu=gpu,
        dtype=dtype,
        attention=_attention(recipe, family, dtype, gpu=gpu),
        micro_steps=data.micro_steps,
        per_step=data.batch_size * data.micro_steps * world,
        zero=zero,
        stage=cast(Stage, stage),
    )


def _dtype(recipe: Recipe, *, gpu: bool) -> torch.dtype:
    name = recipe.student.dtype
    return torch.bfloat16 if name == "bf16" or (name == "auto" and gpu) else torch.float32


def _attention(recipe: Recipe, family: Family | None, dtype: torch.dtype, *, gpu: bool) -> str:
    """FlashAttention where it can run: it knows no float32, and some families' masks not at all."""
    kernel = recipe.student.attention
    if kernel != "auto":
        return kernel
    able = family is not None and _FLASH in family.attentions
    runs = gpu and dtype == torch.bfloat16 and find_spec("flash_attn") is not None
    return _FLASH if able and runs else "sdpa"
