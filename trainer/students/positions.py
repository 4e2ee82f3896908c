"""How many positions a student's language model was made for."""

from typing import Any, Final

_STRETCHED: Final = frozenset({"linear", "dynamic", "yarn"})
"""Rotary embeddings that serve more positions than `max_position_embeddings` may say."""


def positions_of(text_config: Any) -> int | None:
    """Return how many tokens prompt and answer may have together, None where nothing is said.

    Stretched rotary embeddings count with their factor: some configurations name the positions
    before they were stretched (Vicuna 16k), some those after it. Where one cannot tell, the larger
    number holds, since nothing that may fit should be refused.

    Args:
        text_config: of the language model.
    """
    most = getattr(text_config, "max_position_embeddings", None)
    if most is None:
        return None
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _STRETCHED:
        before = rope.get("original_max_position_embeddings") or most
        most = max(most, int(before * rope.get("factor", 1)))
    return int(most)
