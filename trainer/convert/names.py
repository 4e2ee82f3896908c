"""What becomes of each tensor of an original checkpoint, by its name.

The names given are those of the Llava folders on the hub since transformers 4.35, which every
later version reads, whatever it calls the same tensors itself.
"""

import re
from typing import Final

from .tower import INSIDE

TEXT: Final = "language_model."
PROJECTOR: Final = "multi_modal_projector."
VISION: Final = "vision_tower.vision_model."
EMBEDDING: Final = f"{TEXT}model.embed_tokens.weight"
HEAD: Final = f"{TEXT}lm_head.weight"
SOURCE_EMBEDDING: Final = "model.embed_tokens.weight"
SOURCE_HEAD: Final = "lm_head.weight"
POSITIONS: Final = "embeddings.position_ids"

_WRAPPERS: Final = frozenset({"model", "language_model", "vision_model"})
_MLP: Final = {"0": "linear_1", "2": "linear_2"}
_PARTS: Final = {TEXT: "language model", PROJECTOR: "projector", VISION: "vision tower"}


def target_of(name: str) -> str | None:
    """Name in the converted folder of a checkpoint's tensor; None when it has no place there."""
    if name.startswith(INSIDE):
        return VISION + name.removeprefix(INSIDE).removeprefix("vision_model.")
    if hit := re.fullmatch(r"model\.mm_projector\.([02])\.(weight|bias)", name):
        return f"{PROJECTOR}{_MLP[hit[1]]}.{hit[2]}"
    if re.match(r"model\.(embed_tokens|layers|norm)\.", name) or name == SOURCE_HEAD:
        return TEXT + name
    return None


def target_of_tower(name: str) -> str | None:
    """Name in the converted folder of a CLIP folder's tensor; None when it has no place there."""
    for prefix in ("vision_model.", "vision_tower.vision_tower.vision_model."):
        if name.startswith(prefix):
            return VISION + name.removeprefix(prefix)
    # Folders written by transformers 5 leave the wrapper's name away.
    if re.match(r"(embeddings|pre_layrnorm|encoder|post_layernorm)\.", name):
        return VISION + name
    return None


def reason_unused(name: str) -> str | None:
    """Why a tensor of a checkpoint is not needed; None when it must have a place."""
    if name.endswith("rotary_emb.inv_freq"):
        return "follows from rope_theta"
    if name.endswith(POSITIONS):
        return "the numbers 0, 1, 2, ..."
    if name == "model.image_newline":
        return "used by mm_patch_merge_type 'spatial' alone"
    return None


def reason_unused_in_tower(name: str) -> str | None:
    """Why a tensor of a CLIP folder is not needed; None when it must have a place."""
    if name.startswith("text_model.") or name in ("text_projection.weight", "logit_scale"):
        return "text half of CLIP"
    if name == "visual_projection.weight":
        return "leads from CLIP's image to its text"
    return reason_unused(name)


def part_of(target: str) -> str:
    """Part of the model that a converted tensor belongs to."""
    return next(part for prefix, part in _PARTS.items() if target.startswith(prefix))


def bare(name: str) -> str:
    """What is left of a tensor's name without the wrappers that versions put around it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def natural(name: str) -> list[tuple[int, str]]:
    """Key that sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
