"""When a run that goes on is the same run: recipe and identity, but for what changes no number."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .recipe import Recipe, RecipeError

# Changing these leaves every number of the run as it was, or moves files about.
FREE_KEYS: Final = frozenset(
    {
        "data.accumulation",  # what counts is the product with batch_size and ranks
        "data.batch_size",
        "data.cache_folder",
        "data.cache_gb",
        "data.images",
        "data.manifest",  # its records are in the identity
        "data.per_step",  # what it comes to is in the identity
        "data.prefetch",
        "data.start_method",
        "data.workers",
        "deepspeed.config",
        "deepspeed.offload",
        "deepspeed.stage",
        "log.tensorboard",
        "log.wandb",
        "log.wandb_mode",
        "run.keep",
        "run.save_every",
        "run.timeout_minutes",
        "student.dtype",  # the precision that it comes to is in the identity
        "student.path",  # the student's digest is in the identity
        "validation.every",
        "validation.images",
        "validation.keep_best",
        "validation.manifest",  # values of another held-out set are never compared
        "validation.samples",
    }
)


def check_same_run(folder: Path, recipe: Recipe, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of other numbers.

    Args:
        folder: of the run that is there.
        recipe: of this run.
        identity: what else must be equal.

    Raises:
        RecipeError: names what differs.
    """
    old = Recipe.from_yaml(folder / "recipe.yaml").flat()
    new = recipe.flat()
    differ = sorted(k for k in new if k not in FREE_KEYS and old.get(k) != new[k])
    if differ:
        changes = ", ".join(f"{k} was {old.get(k)!r}, is {new[k]!r}" for k in differ)
        raise RecipeError(
            f"{folder} holds a run of another recipe ({changes}); choose another --out, "
            "or --no-resume to start over"
        )
    try:
        before = json.loads((folder / "identity.json").read_text())
    except (OSError, ValueError):
        before = {}
    for key, value in identity.items():
        if before.get(key) != value:
            raise RecipeError(
                f"{folder} was trained with another {key} ({before.get(key)!r}, now "
                f"{value!r}); choose another --out, or --no-resume to start over"
            )
