"""DeepSpeed's configuration: from the recipe, or from the user's own file where both agree."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from ..recipe.recipe import Recipe, RecipeError

# The recipe decides these; a file with other values would change the run behind its back.
_REFUSED: Final = {
    "optimizer": "the recipe's optim section sets up AdamW",
    "scheduler": "optim.schedule and optim.warmup_ratio set the learning rate",
    "amp": "student.dtype sets the precision",
    "torch_autocast": "student.dtype sets the precision",
    "data_types": "student.dtype sets the precision",
    "checkpoint": "checkpoints are medalign's own and fit any number of ranks",
    "data_efficiency": "the order of the samples follows from run.seed",
    "curriculum_learning": "the order of the samples follows from run.seed",
}


def zero_config(recipe: Recipe, *, bf16: bool, world: int) -> dict[str, Any]:
    """Make DeepSpeed's configuration.

    Args:
        recipe: of the run.
        bf16: train in bfloat16 with float32 masters.
        world: ranks.

    Raises:
        RecipeError: the user's file is missing, no JSON object, or contradicts the recipe.
    """
    section = recipe.deepspeed
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": recipe.data.batch_size,
        "gradient_accumulation_steps": recipe.data.micro_steps,
        "train_batch_size": recipe.data.batch_size * recipe.data.micro_steps * world,
        "gradient_clipping": recipe.optim.clip,
        "bf16": {"enabled": bf16},
        "fp16": {"enabled": False},
    }
    if section.config is None:
        config = {**ours, "zero_optimization": _zero(section.stage, section.offload)}
    else:
        path = Path(section.config)
        config = _merged(path, _read(path), ours)
    # torch's AdamW is exact and needs no compiler, also where its state lies in host memory.
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    config.setdefault("steps_per_print", 10**9)
    return config


def zero_stage(config: Mapping[str, Any]) -> int:
    """ZeRO stage that a configuration of `zero_config` sets; 0 where it is silent."""
    return int(_section(config, "zero_optimization").get("stage", 0))


def _zero(stage: int, offload: str) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": stage}
    if offload != "none":
        zero["offload_optimizer"] = host
    if offload == "all":
        zero["offload_param"] = host
    return zero


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"deepspeed.config {path}: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(f"deepspeed.config {path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise RecipeError(f"deepspeed.config {path} holds no JSON object")
    return config


def _merged(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    for key, reason in _REFUSED.items():
        if theirs.get(key) not in (None, {}, "auto"):
            raise RecipeError(f"{path}: remove {key!r}: {reason}")
    for key, value in ours.items():
        written = theirs.get(key, "auto")
        expected = value.get("enabled") if isinstance(value, dict) else value
        if isinstance(written, Mapping):
            written = written.get("enabled", "auto")
        if written not in ("auto", expected):
            raise RecipeError(
                f'{path}: {key} is {written!r}, the recipe makes it {expected!r}; write "auto" '
                "there or change the recipe"
            )
    _check_sections(path, theirs)
    own = {k: v for k, v in theirs.items() if k not in _REFUSED}
    # Other keys of a shared section stay as the file has them, as bf16.immediate_grad_update.
    shared = {k: {**theirs[k], **v} for k, v in ours.items() if isinstance(theirs.get(k), dict)}
    return {**_without_auto(own), **ours, **_without_auto(shared)}


def _check_sections(path: Path, theirs: dict[str, Any]) -> None:
    """Refuse what would change the numbers, or hide the optimizer's state from checkpoints."""
    lowered = [key for key in _section(theirs, "bf16") if key.startswith("bf16_")]
    if lowered:
        raise RecipeError(
            f"{path}: remove bf16.{lowered[0]}: masters and Adam's moments are kept in float32"
        )
    zero = theirs.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else None
    if stage not in (0, 1, 2, 3):
        raise RecipeError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, got {stage!r}")
    for key in ("offload_optimizer", "offload_param"):
        device = _section(zero, key).get("device", "cpu")
        if device not in ("cpu", "none"):
            raise RecipeError(
                f"{path}: zero_optimization.{key}.device is {device!r}; host memory (cpu) is what "
                "medalign can read checkpoints from"
            )


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = config.get(key)
    return section if isinstance(section, Mapping) else {}


def _without_auto(config: dict[str, Any]) -> dict[str, Any]:
    """Drop the placeholders that Hugging Face's Trainer would fill in."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if value != "auto"
    }
