"""A student with its adapter, in an engine, ready for a first step."""

from pathlib import Path
from typing import Any

import torch

from .engine import Engine
from .objective import Objective
from .prepare import attention_kernel, uses_bf16
from .ranks import Ranks, sharded_loading
from .recipe import Recipe
from .student import add_adapter, checkpoint_activations, load_base
from .zero_config import zero_config, zero_stage


def load_engine(recipe: Recipe, student: Path, ranks: Ranks) -> tuple[Any, Engine]:
    """Load a student, give it its adapter, and put it in an engine, ready for a first step."""
    bf16, sharded = uses_bf16(recipe), zero_stage(recipe) == 3
    with sharded_loading(zero_config(recipe, bf16=bf16, world=ranks.world), enabled=sharded):
        base = load_base(
            student,
            precision(recipe),
            attention_kernel(recipe, student),
            ranks.device,
            sharded=sharded,
            quantize=recipe.student.quantize,
        )
        torch.manual_seed(recipe.run.seed)
        model = adapted(base, recipe)
    if recipe.student.gradient_checkpointing:
        checkpoint_activations(base)
    model.train()
    model.to(ranks.device)
    objective = Objective(model, recipe.loss)
    return model, Engine(objective, recipe, ranks, bf16=bf16)


def adapted(base: Any, recipe: Recipe) -> Any:
    """Give a base model what the recipe trains; also of a model on the meta device."""
    return add_adapter(
        base,
        recipe.loss.layer,
        recipe.lora,
        rotation=recipe.loss.rotation,
        projector=recipe.optim.projector_lr > 0,
    )


def precision(recipe: Recipe) -> torch.dtype:
    """Type of weights, activations and pixels of a run here."""
    return torch.bfloat16 if uses_bf16(recipe) else torch.float32
