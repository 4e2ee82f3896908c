"""config.json of an original checkpoint: what is carried over, what is refused by name."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers.activations import ACT2FN

from .checkpoint_families import ORIGINALS, Original
from .errors import ConvertError, read_object


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _above_zero(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _activation(value: Any) -> bool:
    return isinstance(value, str) and value in ACT2FN


_Rule = tuple[str, Callable[[Any], bool], tuple[str, ...]]
_RULES: Final[tuple[_Rule, ...]] = (
    (
        "a whole number above 0",
        _whole,
        (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size", "head_dim", "max_position_embeddings",
        ),
    ),
    ("a number above 0", _above_zero, ("rms_norm_eps", "rope_theta")),
    ("true or false", _is(bool), ("tie_word_embeddings",)),
    ("an object", _is(Mapping), ("rope_scaling", "rope_parameters")),
    ("a list", _is(list), ("layer_types",)),
    ("text", _is(str), ("mm_vision_tower", "vision_tower")),
    ("an activation that transformers knows", _activation, ("hidden_act",)),
)  # fmt: skip


def check_values(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a value that is of another kind than its key's; null is as good as absent.

    Raises:
        ConvertError: names file and key.
    """
    for expected, fits, keys in _RULES:
        for key in keys:
            value = values.get(key)
            if value is not None and not fits(value):
                raise ConvertError(f"{path}: {key} is {value!r}, expected {expected}")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if values.get("head_dim") is None and width % (2 * heads):
        raise ConvertError(
            f"{path}: hidden_size {width} cannot be cut into num_attention_heads {heads} of an "
            "even width"
        )
    if heads % values["num_key_value_heads"]:
        raise ConvertError(
            f"{path}: num_attention_heads {heads} is no multiple of num_key_value_heads "
            f"{values['num_key_value_heads']}"
        )


_SIZES: Final = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
)
"""Without these the language model is not known; transformers' own defaults change."""

_TEXT: Final = (
    *_SIZES,
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "attention_dropout",
    "use_cache",
    "bos_token_id",
)

# Values that the converted model can have; anything else is refused.
_FOLLOWED: Final[Mapping[str, tuple[object, ...]]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": (None, "patch"),
    "mm_use_im_start_end": (None, False),
    "mm_patch_merge_type": (None, "flat"),
    "mm_resampler_type": (None,),
    "image_aspect_ratio": (None, "square", "pad"),
    "s2": (None, False),
    "s2_scales": (None,),
    "quantization_config": (None,),
}

_OTHERS: Final = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "eos_token_id",
        "feature_outs",
        "freeze_mm_mlp_adapter",
        "freeze_mm_vision_resampler",
        "image_grid_pinpoints",
        "img_size",
        "mm_hidden_size",
        "mm_projector_lr",
        "mm_use_im_patch_token",
        "mm_vision_select_layer",
        "mm_vision_tower",
        "model_type",
        "pad_token_id",
        "segtok_posembed",
        "tie_word_embeddings",
        "tokenizer_model_max_length",
        "tokenizer_padding_side",
        "torch_dtype",
        "transformers_version",
        "tune_mm_mlp_adapter",
        "tune_mm_vision_resampler",
        "unfreeze_mm_vision_tower",
        "use_mm_proj",
        "vision_backbone",
        "vision_tower",
    }
)
"""Read elsewhere, or of no account once the model is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an original config.json says.

    Attributes:
        path: the file.
        values: all of it.
        text: arguments of the language model's configuration.
        layer: hidden state of the vision tower that is used, as Python counts.
        tower: name of the vision tower.
        pads: images are padded to a square with the mean colour; otherwise the middle is cut out.
        unknown: keys that no rule speaks of.
    """

    path: Path
    values: Mapping[str, Any]
    text: Mapping[str, Any]
    layer: int
    tower: str
    pads: bool
    unknown: tuple[str, ...]

    @property
    def tied(self) -> bool | None:
        """Whether embedding and head share one matrix; None when it does not say."""
        value: bool | None = self.values.get("tie_word_embeddings")
        return value


def read_settings(source: Path, family: Original) -> Settings:
    """Read and check config.json of an original checkpoint.

    Raises:
        ConvertError: no such folder, another kind of model, or a setting that the converted model
            cannot follow.
    """
    path = source / "config.json"
    values = _read(source, path)
    _check_family(path, values, family)
    for key, followed in _FOLLOWED.items():
        if values.get(key) not in followed:
            allowed = " or ".join("absent" if v is None else repr(v) for v in followed)
            raise ConvertError(
                f"{path}: {key} is {values.get(key)!r}, which a Hugging Face Llava cannot follow; "
                f"only {allowed} is converted"
            )
    missing = [key for key in _SIZES if values.get(key) is None]
    if values.get("rope_theta") is None and not values.get("rope_parameters"):
        missing.append("rope_theta")
    if missing:
        raise ConvertError(f"{path} does not say {', '.join(missing)}")
    check_values(path, values)
    layer = values.get("mm_vision_select_layer", -2)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise ConvertError(f"{path}: mm_vision_select_layer must be one number, is {layer!r}")
    known = {*_TEXT, *_FOLLOWED, *_OTHERS}
    return Settings(
        path=path,
        values=values,
        text={key: values[key] for key in _TEXT if key in values},
        layer=layer,
        tower=values.get("mm_vision_tower") or values.get("vision_tower") or "",
        pads=values.get("image_aspect_ratio") == "pad",
        unknown=tuple(sorted(values.keys() - known)),
    )


def _read(source: Path, path: Path) -> dict[str, Any]:
    if not source.is_dir():
        raise ConvertError(f"no checkpoint at {source}: a local folder is expected")
    if not path.is_file():
        raise ConvertError(f"{source} has no config.json, so it is no checkpoint of a whole model")
    return read_object(path)


def _check_family(path: Path, values: Mapping[str, Any], family: Original) -> None:
    kind = values.get("model_type")
    if kind == family.model_type:
        return
    if kind == "llava":
        raise ConvertError(
            f"{path} is a Hugging Face Llava already (model_type 'llava'); check it with "
            f"`medalign student check {path.parent}`"
        )
    other = next((one for one in ORIGINALS.values() if one.model_type == kind), None)
    hint = f"; that is {other.title}: give --family {other.name}" if other else ""
    raise ConvertError(
        f"{path}: model_type is {kind!r}, {family.title} (--family {family.name}) has "
        f"{family.model_type!r}{hint}"
    )
