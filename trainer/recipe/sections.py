"""Sections of a recipe that say what is learnt: student, expert, losses, LoRA, optimiser."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

AttentionNorm = Literal["sum", "softmax", "l2"]
"""How attention becomes a distribution; named here, since a recipe is read without torch."""

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
    `demo` makes a tiny one with random weights in `demo-student`, beside the run folder."""

    geometry: Literal["processor", "pad", "crop", "stretch"] = "processor"
    """How an image becomes the tower's square; `processor` takes it from the image processor.

    The others are for llava students only.
    """

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of weights and activations; `auto` is bf16 on a GPU and fp32 on a CPU. A
    resumed run needs the same one."""

    attention: Literal["auto", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel of every layer; `auto` is FlashAttention if it is installed and the run is
    in bf16 on a GPU, else PyTorch's SDPA. A gemma3 student runs with sdpa only."""

    quantize: Literal["none", "nf4"] = "none"
    """`nf4` keeps the frozen linear layers of the language model in 4 bits (QLoRA); it needs
    bitsandbytes and a ZeRO stage below 3."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time a step."""


class ExpertSection(Section):
    """The expert that the cache must come from; None accepts any."""

    name: str | None = None
    """Name of the expert, as in `cache build --expert`."""

    features: Literal["last", "ln_post"] | None = None
    """Layer whose patch features are in the cache."""

    mode: Literal["aligned", "paper"] | None = None
    """`aligned`: expert and student saw the same square; `paper`: the expert saw a centre crop."""


class LossSection(Section):
    """Eq. 7: total = lm + alpha * vis + beta * att."""

    layer: Annotated[int, Field(ge=0)]
    """Decoder layer l, counted from 0, whose input is rotated and whose attention is aligned."""

    alpha: Rate = 1.0
    """Weight of the spatial alignment loss; with 0 it is measured only."""

    beta: Rate = 0.001
    """Weight of the attention alignment loss; with 0 it is measured only."""

    attention: AttentionNorm = "sum"
    """How attention maps become comparable; `l2` reproduces the authors' released code."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Temperature of both attention maps; above 1 flattens them, and `l2` ignores it."""

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
    """Schedule of the learning rates after warm-up: down to 0, or unchanged for `constant`."""

    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of all steps in which the rates rise linearly from 0."""

    clip: Rate = 1.0
    """Largest L2 norm of the whole gradient; 0 turns clipping off."""


class DataSection(Section):
    """The training data."""

    manifest: str | None = None
    """Manifest of conversations; `--manifest` overrides it."""

    images: str | None = None
    """Folder of the manifest's images; `--images` overrides it."""

    batch_size: Positive = 1
    """Conversations per micro-step and rank."""

    accumulation: Positive | None = None
    """Micro-steps per step; a step takes batch_size * accumulation * ranks conversations. None
    derives it from `per_step` and the ranks, and is 1 without `per_step`."""

    per_step: Positive | None = None
    """Conversations of a step over all ranks, so that a recipe makes the same steps on one GPU and
    on eight; None leaves it to `accumulation`."""

    max_length: Positive = 2048
    """Most tokens of a conversation, image tokens included. Only answers are ever cut."""

    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode images and read the cache; 0 does it in the training process."""

    prefetch: Positive = 2
    """Steps that the workers read ahead. It bounds memory: prefetch * accumulation micro-batches,
    but at least one for each worker."""

    start_method: Literal["auto", "fork", "spawn"] = "auto"
    """How worker processes start; `auto` forks where the system can. `spawn` starts slower and
    copies the manifest to every worker, but works with libraries that do not survive a fork."""

    group_by_length: bool = False
    """Put conversations of similar length (estimated from text and images) into the same step, so
    that there is less padding; every epoch still takes each once."""

    cache_folder: str | None = None
    """Local folder for rows of a teacher cache behind a URL, so that each is fetched once; None
    takes `MEDALIGN_CACHE_FOLDER`, and without that variable no row is stored."""

    cache_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 50.0
    """Largest size of that folder, in units of 10^9 bytes."""

    on_missing: Literal["drop", "fail", "lm_only"] = "drop"
    """What to do with conversations whose image has no row in the cache: leave them out, refuse
    to train, or train them without a teacher. Their number is always printed."""

    @property
    def micro_steps(self) -> int:
        """`accumulation`, once the ranks are known."""
        return self.accumulation or 1


class LogSection(Section):
    """Where a run's numbers go besides `metrics.jsonl`; nothing here changes the run."""

    tensorboard: bool = False
    """Write the numbers to RUN/tensorboard; needs the extra `medalign[tensorboard]`."""

    wandb: str | None = None
    """Weights & Biases project; None logs nothing there. Needs the extra `medalign[wandb]`."""

    wandb_mode: Literal["offline", "online"] = "offline"
    """`offline` writes W&B's files to RUN/wandb, for `wandb sync`; `online` sends them. The
    environment variable `WANDB_MODE` overrides it."""


class ValidationSection(Section):
    """The loss on held-out conversations; nothing here changes the run."""

    manifest: str | None = None
    """Manifest of held-out conversations; None turns validation off."""

    images: str | None = None
    """Folder of its images; None takes `data.images`."""

    every: Positive = 200
    """Steps between evaluations; step 0 and the last step are always evaluated."""

    samples: Annotated[int, Field(ge=0)] = 0
    """Largest number of conversations, the same random ones each time; 0 takes all."""

    keep_best: Literal["loss", "lm", "vis", "att"] | None = None
    """Also keep the checkpoint that is lowest in this, and copy its adapter to RUN/adapter-best;
    each new lowest value writes a checkpoint. None keeps the newest ones only."""

    def model_post_init(self, _context: Any) -> None:
        """Insist on something to measure."""
        if self.keep_best and self.manifest is None:
            raise ValueError("keep_best needs validation.manifest")


class DeepSpeedSection(Section):
    """How the training state is divided among ranks."""

    stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: 0 nothing, 1 optimiser state, 2 also gradients, 3 also the weights."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What is in host memory instead of the GPU's: `optimizer` state (stages 1 to 3), or `all`,
    which is also the weights (stage 3)."""

    config: str | None = None
    """DeepSpeed configuration file (JSON) for everything that the recipe leaves open. Its stage
    and offloading are used; a value that contradicts the recipe is refused."""

    def model_post_init(self, _context: Any) -> None:
        """Refuse what DeepSpeed would ignore or fail on later."""
        if self.config is not None and self.offload != "none":
            raise ValueError("deepspeed.offload is in the file that deepspeed.config names")
        if self.offload == "optimizer" and self.stage == 0:
            raise ValueError("offload: optimizer needs stage 1, 2 or 3")
        if self.offload == "all" and self.stage != 3:
            raise ValueError("offload: all needs stage 3")


class RunSection(Section):
    """Length of the run, and its checkpoints."""

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Passes over the manifest; give this or `steps`."""

    steps: Positive | None = None
    """Optimiser steps; give this or `epochs`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the order, of LoRA's initial weights and of dropout."""

    save_every: Positive = 200
    """Steps between checkpoints; the last step is always saved."""

    keep: Positive = 2
    """How many of the newest checkpoints to keep, besides the best of `validation.keep_best`."""

    timeout_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """How long a rank waits for the others before it gives up."""

    def model_post_init(self, _context: Any) -> None:
        """Insist on one of epochs and steps."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either run.epochs or run.steps; null takes one away")
