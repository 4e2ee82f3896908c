"""Sections of a recipe that say how a run goes: data, validation, logs, ranks, length."""

from typing import Annotated, Any, Literal

from pydantic import Field

from .recipe_sections import Positive, Section


class DataSection(Section):
    """What is learnt from."""

    manifest: str | None = None
    """Manifest of conversations; `--manifest` overrides it."""

    images: str | None = None
    """Folder that the manifest's image paths start from; `--images` overrides it."""

    batch_size: Positive = 1
    """Conversations per micro-step and rank."""

    accumulation: Positive | None = None
    """Micro-steps per step, which sees batch_size * accumulation * ranks conversations; None is
    what `per_step` comes to on the ranks at hand, and 1 without it."""

    per_step: Positive | None = None
    """Conversations of a step over all ranks together, so that the same recipe makes the same
    steps on one GPU and on eight; None leaves it to `accumulation`."""

    max_length: Positive = 2048
    """Most tokens of a conversation, image tokens counted. Only answers are ever cut."""

    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode images and read the cache; 0 does it in the training process."""

    prefetch: Positive = 2
    """Steps that the workers read ahead; bounds memory at prefetch * accumulation micro-batches,
    but at least one a worker."""

    start_method: Literal["auto", "fork", "spawn"] = "auto"
    """How worker processes start; `auto` forks where the system can. `spawn` starts slower and
    copies the manifest's text to every worker, but works beside libraries that do not stand a
    fork."""

    group_by_length: bool = False
    """Put conversations of similar length (estimated from their text and images) into the same
    steps, so that less is padded; every epoch still visits each once."""

    cache_folder: str | None = None
    """Local folder that keeps rows of a teacher cache behind a URL, so that they are fetched once;
    None takes `MEDALIGN_CACHE_FOLDER`, and keeps nothing where that is not set either."""

    cache_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 50.0
    """How large that folder may become, in units of 10^9 bytes."""

    on_missing: Literal["drop", "fail", "lm_only"] = "drop"
    """What to do with conversations whose image is not in the cache; the number is always said."""

    @property
    def micro_steps(self) -> int:
        """`accumulation`, once the ranks are known."""
        return self.accumulation or 1


class LogSection(Section):
    """Where a run's numbers go, beside `metrics.jsonl`; none of it changes the run."""

    tensorboard: bool = False
    """Write the numbers to RUN/tensorboard; needs the extra `medalign[tensorboard]`."""

    wandb: str | None = None
    """Weights & Biases project; None does without. Needs the extra `medalign[wandb]`."""

    wandb_mode: Literal["offline", "online"] = "offline"
    """`offline` keeps W&B's files in RUN/wandb, for `wandb sync`; `online` sends them. The variable
    `WANDB_MODE` wins where it is set."""


class ValidationSection(Section):
    """The loss on conversations that are never learnt from; none of it changes the run."""

    manifest: str | None = None
    """Manifest of held-out conversations; None measures none."""

    images: str | None = None
    """Folder that its image paths start from; None takes `data.images`."""

    every: Positive = 200
    """Steps between evaluations; step 0 and the last step are always evaluated."""

    samples: Annotated[int, Field(ge=0)] = 0
    """At most so many conversations, the same random choice every time; 0 takes all."""

    keep_best: Literal["loss", "lm", "vis", "att"] | None = None
    """Keep the checkpoint that is lowest in this, too, and copy its adapter to RUN/adapter-best;
    each new lowest value is a checkpoint of its own. None keeps the newest ones only."""

    def model_post_init(self, _context: Any) -> None:
        """Insist on something to measure."""
        if self.keep_best and self.manifest is None:
            raise ValueError("keep_best needs validation.manifest")


class DeepSpeedSection(Section):
    """How state is divided among ranks."""

    stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: 0 nothing, 1 optimiser state, 2 also gradients, 3 also the weights."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in host memory instead of the GPU's: `optimizer` state (stages 1 to 3), or `all`:
    also the weights (stage 3)."""

    config: str | None = None
    """DeepSpeed configuration file (JSON) for everything that the recipe does not say; its stage
    and offloading are used, and where it contradicts the recipe it is refused."""

    def model_post_init(self, _context: Any) -> None:
        """Refuse what DeepSpeed would ignore or fail on later."""
        if self.config is not None and self.offload != "none":
            raise ValueError("deepspeed.offload is in the file that deepspeed.config names")
        if self.offload == "optimizer" and self.stage == 0:
            raise ValueError("offload: optimizer needs stage 1, 2 or 3")
        if self.offload == "all" and self.stage != 3:
            raise ValueError("offload: all needs stage 3")


class RunSection(Section):
    """How long, and what is kept."""

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Passes over the manifest; give either this or `steps`."""

    steps: Positive | None = None
    """Optimiser steps; give either this or `epochs`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the order, of LoRA's start and of dropout."""

    save_every: Positive = 200
    """Steps between checkpoints; the last step is always saved."""

    keep: Positive = 2
    """Checkpoints kept, the newest ones; the best one of `validation.keep_best` comes on top."""

    timeout_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """How long a rank waits for the others before it gives up."""

    def model_post_init(self, _context: Any) -> None:
        """Insist on one of epochs and steps."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either run.epochs or run.steps; null takes one away")
