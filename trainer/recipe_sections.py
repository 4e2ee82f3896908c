"""Sections of a recipe that say what is learnt: student, expert, losses, LoRA, optimiser."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

from .losses import AttentionNorm

Positive = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Keys that belong together: unknown ones are refused, and nothing changes afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class StudentSection(Section):
    """Which model learns."""

    path: str | None = None
    """Folder of a Hugging Face model: llava, gemma3 or qwen2_5_vl; `--student` overrides it.
    `demo` makes a tiny one with random weights, `demo-student` beside the run folder."""

    geometry: Literal["processor", "pad", "crop", "stretch"] = "processor"
    """How an image becomes the tower's square; `processor` reads it from the image processor.

    Only a llava student can be told another.
    """

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Weights and activations; `auto` is bf16 on a GPU and fp32 on a CPU. A resumed run must come
    to the same one."""

    attention: Literal["auto", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel of every layer; `auto` is FlashAttention where it is installed and the run
    is in bf16 on a GPU, and PyTorch's SDPA otherwise. Never eager; a gemma3 student takes
    sdpa alone."""

    quantize: Literal["none", "nf4"] = "none"
    """`nf4` keeps the frozen linear layers of the language model in 4 bits (QLoRA); needs
    bitsandbytes and a ZeRO stage below 3."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class ExpertSection(Section):
    """Which teacher the cache must hold; None accepts what the cache says."""

    name: str | None = None
    """Name of the expert, as in `cache build --expert`."""

    features: Literal["last", "ln_post"] | None = None
    """Where the patch features were taken."""

    mode: Literal["aligned", "paper"] | None = None
    """`aligned`: expert and student saw the same square; `paper`: the expert saw a centre crop."""


class LossSection(Section):
    """Eq. 7: total = lm + alpha * vis + beta * att."""

    layer: Annotated[int, Field(ge=0)]
    """Decoder layer l, counted from 0: its input is rotated, its attention is read."""

    alpha: Rate = 1.0
    """Weight of the spatial alignment loss; 0 measures it without training on it."""

    beta: Rate = 0.001
    """Weight of the attention alignment loss; 0 measures it without training on it."""

    attention: AttentionNorm = "sum"
    """How attention maps become comparable; `l2` reproduces the authors' released code."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Above 1 flattens both attention maps; not used by `l2`."""

    rotation: bool = True
    """Train I + W on the visual tokens at the input of layer l (Eq. 1)."""


class LoraSection(Section):
    """LoRA on every linear layer of the language model."""

    rank: Positive = 32
    """Rank r of the update."""

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    """The update is scaled by alpha / rank."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout on the input of the update."""


class OptimSection(Section):
    """AdamW."""

    lr: Rate = 2e-4
    """Learning rate of LoRA."""

    projector_lr: Rate = 2e-5
    """Learning rate of the multimodal projector; 0 freezes it."""

    rotation_lr: Rate | None = None
    """Learning rate of W; None takes `lr`."""

    weight_decay: Rate = 0.0
    """Decoupled weight decay of every trained parameter."""

    betas: Annotated[tuple[Decay, Decay], Strict(False)] = (0.9, 0.999)
    """Decay of the first and second moment."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rates after warm-up, down to 0 (or kept, for `constant`)."""

    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of all steps in which the rates rise linearly from 0."""

    clip: Rate = 1.0
    """Largest L2 norm of the whole gradient; 0 does not clip."""
