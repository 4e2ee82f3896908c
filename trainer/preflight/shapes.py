"""A student's parameters and sizes without its weights: built on the meta device."""

from pathlib import Path
from typing import Any

import torch

from ..data.batch import Batch
from ..distributed.engine import group_of
from ..memory import Load, Offload, Parameters, Settings, Shape
from ..prepared import Prepared
from ..recipe.recipe import Recipe
from ..student import unloaded_model
from ..students.spec import StudentSpec, read_config
from ..train import adapted
from .measure import tensors_of


def count_parameters(path: Path, recipe: Recipe) -> Parameters:
    """Count what a run holds and trains, by giving a model without memory its adapter."""
    with torch.device("meta"):
        model = adapted(unloaded_model(path), recipe)
    counts = {"frozen": 0, "linear": 0, "lora": 0, "projector": 0, "rotation": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[group_of(name)] += parameter.numel()
        else:
            counts["frozen"] += parameter.numel()
            counts["linear"] += parameter.numel() * name.endswith("base_layer.weight")
    return Parameters(**counts)


def shape_of(student: StudentSpec) -> Shape:
    """Read the sizes that decide activations from config.json."""
    config = read_config(student.path)
    text, vision = config.text_config, config.vision_config
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    gemma = text.model_type.startswith("gemma3")
    return Shape(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=text.intermediate_size,
        query_width=heads * head_width,
        key_width=text.num_key_value_heads * head_width,
        heads=heads,
        vocabulary=text.vocab_size,
        tower_width=vision.hidden_size,
        norms=4 if gemma else 2,
        head_norms=gemma,
    )


def load_of(batch: Batch) -> Load:
    """Measure what a real micro-batch puts on a rank."""
    size, tokens = batch.input_ids.shape
    teacher = batch.teacher
    return Load(
        batch=size,
        tokens=tokens,
        images=0 if batch.grids is None else len(batch.grids),
        visual=0 if batch.grids is None else int(batch.grids.prod(1).max()),
        answers=batch.answer_tokens,
        question=0 if teacher is None else teacher.look.rows.shape[1],
        teacher_bytes=sum(tensor.nbytes for tensor in tensors_of(teacher)),
        padded=not bool(batch.attention_mask.all()),
    )


def settings_of(plan: Prepared) -> Settings:
    """Take from a run what decides memory."""
    recipe, derived = plan.recipe, plan.derived
    size = derived.dtype.itemsize
    zero = derived.zero.get("zero_optimization", {})
    away = [part for part in ("optimizer", "param") if _in_host_memory(zero, part)]
    offload: Offload = "all" if len(away) == 2 else "optimizer" if away == ["optimizer"] else "none"
    return Settings(
        number_bytes=size,
        rank=recipe.lora.rank,
        dropout=recipe.lora.dropout > 0,
        checkpointing=recipe.student.gradient_checkpointing,
        flash=derived.flash,
        losses=plan.cache is not None,
        rotation=recipe.loss.rotation,
        stage=derived.stage,
        offload=offload,
        world=derived.world,
        quantized=recipe.student.quantize != "none",
        mask_bytes=1 if derived.gpu else size,  # a GPU packs a mask into bytes,
    )


def _in_host_memory(zero: Any, part: str) -> bool:
    """Whether optimizer or parameters are offloaded, by DeepSpeed's own configuration."""
    offload = zero.get(f"offload_{part}") or {}
    return bool(offload.get("device", "none") != "none")
