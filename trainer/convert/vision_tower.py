"""Which vision tower a converted model gets: the checkpoint's own, or a CLIP folder's."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from transformers import CLIPVisionConfig

from ..students.spec import OWN_CODE
from ..students.square import BICUBIC, CHANNELS, fits_channels
from .checkpoint_weights import Weights
from .errors import ConvertError, one_line, read_object
from .model_config import Settings

Choice = Literal["checkpoint", "folder"]

INSIDE: Final = "model.vision_tower.vision_tower."
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP
_STD: Final = (0.26862954, 0.26130258, 0.27577711)
_OPENAI: Final = re.compile(r"clip[-_]vit[-_](base|large)[-_]patch\d+")
_HEAD_WIDTH: Final = 64
_VISION: Final = "vision_model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """The vision tower of a converted model.

    Attributes:
        origin: whose weights it has.
        config: of the tower.
        folder: that says its settings; None when they follow from the checkpoint.
        weights: of the folder; None when they are in the checkpoint.
        mean, std: of the three channels.
    """

    origin: Choice
    config: Any
    folder: Path | None
    weights: Weights | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def describe(self) -> str:
        """Say where it is from, without paths."""
        if self.origin == "checkpoint":
            return "the checkpoint's own"
        return f"of the folder {self.folder.name if self.folder else ''}"


def find_tower(
    settings: Settings, weights: Weights, clip: Path | None, choice: Choice | None
) -> Tower:
    """Decide on the vision tower.

    A tower in the checkpoint was trained with it, so nothing replaces it unasked.

    Args:
        settings: of the checkpoint.
        weights: of the checkpoint.
        clip: the folder of --vision-tower.
        choice: whose weights count when there are two.

    Raises:
        ConvertError: there are two towers and no choice, or none at all.
    """
    own = sum(name.startswith(INSIDE) for name in weights.tensors)
    folder = clip or _beside(settings)
    if own and clip is not None and choice is None:
        raise ConvertError(
            f"{weights.folder} holds its own vision tower ({own} tensors) and --vision-tower gives "
            "another: leave --vision-tower out, or give --tower-weights checkpoint to take only "
            "settings from it, or --tower-weights folder to replace the checkpoint's tower"
        )
    origin: Choice = choice or ("checkpoint" if own else "folder")
    if origin == "checkpoint" and not own:
        raise ConvertError(
            f"{weights.folder} holds no vision tower, so --tower-weights checkpoint is impossible"
        )
    if folder is None and origin == "folder":
        raise ConvertError(
            f"{weights.folder} holds no vision tower; its config.json names "
            f"{settings.tower or 'none'!r}: give --vision-tower DIR, that model's own folder with "
            "config.json and weights"
        )
    return _tower(settings, weights, folder, origin)


def _tower(settings: Settings, weights: Weights, folder: Path | None, origin: Choice) -> Tower:
    config = _derived(settings, weights) if folder is None else _config(folder)
    clip = None
    if origin == "folder" and folder is not None:
        clip = Weights.open(folder)
        if clip is None:
            raise ConvertError(f"{folder} holds no weights of a vision tower")
    _check_width(settings, config, folder)
    images = {} if folder is None else _images(folder, config)
    return Tower(
        origin=origin,
        config=config,
        folder=folder,
        weights=clip,
        mean=tuple(images.get("image_mean") or _MEAN),
        std=tuple(images.get("image_std") or _STD),
    )


def _beside(settings: Settings) -> Path | None:
    """The folder within the checkpoint that its config.json names."""
    name = Path(settings.tower)
    if not settings.tower or name.is_absolute() or ".." in name.parts:
        return None
    folder = settings.path.parent / name
    return folder if (folder / "config.json").is_file() else None


def _config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ConvertError(f"{folder} is no vision tower: it has no config.json")
    load: Any = CLIPVisionConfig.from_pretrained
    kind = read_object(folder / "config.json").get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ConvertError(f"{folder} is a {kind!r} model, the vision tower must be a CLIP")
    with one_line(f"{folder}: cannot read config.json"):
        config = load(folder, **OWN_CODE)
    size, patch = config.image_size, config.patch_size
    if not (isinstance(size, int) and isinstance(patch, int) and 0 < patch <= size):
        raise ConvertError(
            f"{folder / 'config.json'}: image_size {size!r} and patch_size {patch!r} make no "
            "square grid of patches"
        )
    return config


def _check_width(settings: Settings, config: Any, folder: Path | None) -> None:
    width = settings.values.get("mm_hidden_size")
    if width is not None and width != config.hidden_size:
        raise ConvertError(
            f"{folder or settings.path}: the vision tower is {config.hidden_size} wide, "
            f"{settings.path} says mm_hidden_size {width}"
        )


def _derived(settings: Settings, weights: Weights) -> Any:
    """Settings of a tower in the checkpoint: its tensors' shapes, and what its name stands for."""
    name = settings.tower.rstrip("/").rpartition("/")[2].lower()
    if not _OPENAI.match(name) or "laion" in settings.tower.lower():
        raise ConvertError(
            f"{settings.path} names the vision tower {settings.tower!r}, whose heads and "
            "activation are not known here: give --vision-tower DIR with its config.json, and "
            "--tower-weights checkpoint"
        )
    shapes = {
        key.removeprefix(INSIDE).removeprefix(_VISION): tensor.shape
        for key, tensor in weights.tensors.items()
        if key.startswith(INSIDE)
    }
    layers = {hit[1] for key in shapes if (hit := re.match(r"encoder\.layers\.(\d+)\.", key))}
    try:
        width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
        patches = shapes["embeddings.position_embedding.weight"][0] - 1  # and the class token
        between = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except (LookupError, ValueError) as error:
        raise ConvertError(f"{weights.folder}: its vision tower is no CLIP: {error}") from error
    config: Any = CLIPVisionConfig
    with one_line(f"{weights.folder}: its vision tower is no CLIP"):
        return config(
            hidden_size=width,
            intermediate_size=between,
            num_hidden_layers=len(layers),
            num_attention_heads=max(1, width // _HEAD_WIDTH),
            image_size=math.isqrt(patches) * patch,
            patch_size=patch,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            projection_dim=768 if "large" in name else 512,
        )


def _images(folder: Path, config: Any) -> Mapping[str, Any]:
    """preprocessor_config.json of a CLIP folder, if it has one."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    values = read_object(path)
    for key in ("image_mean", "image_std"):
        channels = values.get(key)
        if channels is not None and not fits_channels(key, channels):
            raise ConvertError(f"{path}: {key} is {channels!r}, expected {CHANNELS[key]}")
    side = config.image_size
    for key in ("size", "crop_size"):
        size = values.get(key, side)
        sides = [*size.values()] if isinstance(size, dict) else [size]
        if any(pixels != side for pixels in sides):
            raise ConvertError(f"{path}: {key} is {size}, the vision tower takes {side} pixels")
    if values.get("resample", BICUBIC) != BICUBIC or not values.get("do_normalize", True):
        raise ConvertError(f"{path}: images must be resized by the bicubic filter and normalised")
    return values
