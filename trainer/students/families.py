"""The families that medalign can train, by the `model_type` of their config.json."""

from typing import Any, Final

from .family import Family
from .gemma3 import GEMMA3
from .llava import LLAVA
from .qwen2_5_vl import QWEN2_5_VL

FAMILIES: Final[dict[str, Family]] = {
    family.model_type: family for family in (LLAVA, GEMMA3, QWEN2_5_VL)
}


def family_of(model: Any) -> Family:
    """The family of a loaded model, PEFT wrapper taken off."""
    return FAMILIES[model.config.model_type]
