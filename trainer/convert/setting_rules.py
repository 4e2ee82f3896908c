"""What the values of an original config.json must be, before transformers is asked."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from transformers.activations import ACT2FN

from .errors import ConvertError


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _above_zero(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _list(value: Any) -> bool:
    return isinstance(value, list)


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
    ("true or false", _flag, ("tie_word_embeddings",)),
    ("an object", _mapping, ("rope_scaling", "rope_parameters")),
    ("a list", _list, ("layer_types",)),
    ("text", _text, ("mm_vision_tower", "vision_tower")),
    ("an activation that transformers knows", _activation, ("hidden_act",)),
)  # fmt: skip


def check_values(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a value that is of another kind than its key's; null is as good as absent.

    Raises:
        ConvertError: names file and key.
    """
    for expected, fits, keys in _RULES:
        for key in keys:
            found = values.get(key)
            if found is not None and not fits(found):
                raise ConvertError(f"{path}: {key} is {found!r}, expected {expected}")
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
