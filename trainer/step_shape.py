"""Counts and sizes that decide what a training step takes; pure values, no tensors.

Letters: B conversations, T tokens of each, I images, A answer tokens, N visual tokens of an
image, L layers, C width of the language model, H heads, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

Stage = Literal[0, 1, 2, 3]
Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How many parameters a student has with its adapter.

    Attributes:
        frozen: base weights, those of the untrained copies that PEFT keeps included.
        linear: of those, weights of the language model's linear layers, which can be quantised.
        lora, projector, rotation: trained.
    """

    frozen: int
    linear: int
    lora: int
    projector: int
    rotation: int

    @property
    def trained(self) -> int:
        """All trained parameters."""
        return self.lora + self.projector + self.rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a student that decide its activations.

    Attributes:
        layers, width, inner: L, C and width of the MLP of the language model.
        query_width, key_width: heads times head width, of queries and of keys.
        heads: H, query heads.
        vocabulary: V.
        tower_width: features that the vision tower gives a patch.
    """

    layers: int
    width: int
    inner: int
    query_width: int
    key_width: int
    heads: int
    vocabulary: int
    tower_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one micro-batch puts on a rank.

    Attributes:
        batch: B.
        tokens: T, padding counted.
        images: I.
        visual: N, of the image that has most.
        answers: A, answer tokens of the micro-batch.
        question: R, most question tokens of an image.
        teacher_bytes: of the cache's rows.
        padded: whether conversations differ in length, so that a mask is needed.
    """

    batch: int
    tokens: int
    images: int
    visual: int
    answers: int
    question: int
    teacher_bytes: int
    padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of a recipe decides memory.

    Attributes:
        number_bytes: of a weight or activation: 2 for bf16, 4 for fp32.
        rank: r of LoRA.
        dropout: whether LoRA's inputs are dropped out.
        checkpointing: activations are recomputed in the backward pass.
        flash: FlashAttention instead of SDPA.
        losses: the losses from the cache are computed.
        rotation: the visual tokens are rotated.
        stage, offload: of ZeRO.
        world: ranks.
        quantized: linear layers of the language model are held in 4 bits.
        mask_bytes: of one number of a dropout mask.
    """

    number_bytes: int
    rank: int
    dropout: bool
    checkpointing: bool
    flash: bool
    losses: bool
    rotation: bool
    stage: Stage
    offload: Offload = "none"
    world: int = 1
    quantized: bool = False
    mask_bytes: int = 1
