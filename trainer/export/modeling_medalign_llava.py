"""Llava with the rotation I + W on the visual tokens of one decoder layer.

This file travels with an exported model and stands alone: it needs torch and transformers, not
medalign. Written by `medalign export`; Apache-2.0.
"""

from typing import Any

import torch
import transformers
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

KNOWN_TRANSFORMERS = "5.17 to 5.24"
"""Versions that read this folder when it was written; others are tried all the same."""


def name_weights_as_llava(model_type: str) -> None:
    """Let transformers convert the names of a checkpoint of another model type as Llava's.

    It converts by model type and leaves out types that it does not know: lm_head would be random.
    No public function says so, and what is not public may change with any release: whatever is
    missing ends here, in one line, before a weight is read.

    Raises:
        ImportError: this version of transformers has other functions.
    """
    try:
        from transformers import conversion_mapping

        private: Any = conversion_mapping
        names = private.get_checkpoint_conversion_mapping("llava")
        if not names:
            raise ValueError("there is no mapping for llava")
        private.register_checkpoint_conversion_mapping(model_type, names, overwrite=True)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ImportError(
            f"transformers {transformers.__version__} cannot load a model with a rotation: its "
            "private transformers.conversion_mapping, which names the weights, is gone or has "
            f"changed ({error}); versions {KNOWN_TRANSFORMERS} are known to work: pip install "
            "'transformers>=5.17,<5.25'"
        ) from error


class MedAlignLlavaConfig(LlavaConfig):  # type: ignore[no-untyped-call]
    """A Llava's config, and which layer is rotated.

    The model type is its own: `llava` would let a caller without `trust_remote_code` load plain
    Llava, which drops W.

    Attributes:
        rotated_layer: l, counted from 0 as in `language_model.layers[l]`.
    """

    model_type = "medalign_llava"
    rotated_layer: int = 0


class VisualRotation(nn.Module):
    """x + W x on visual tokens, x elsewhere; W is [C, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width))

    def forward(self, hidden: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        """Rotate hidden [B, T, C] where visual [B, T] is True."""
        turned = hidden + nn.functional.linear(hidden, self.weight)
        return torch.where(visual[..., None], turned, hidden)


class MedAlignLlavaForConditionalGeneration(  # type: ignore[no-untyped-call]
    LlavaForConditionalGeneration
):
    """Llava whose prompt's visual tokens are rotated; generated tokens never are."""

    config_class = MedAlignLlavaConfig
    # Servers that call the language model by themselves would pass the rotation by.
    _supports_attention_backend = False

    def __init__(self, config: Any) -> None:
        name_weights_as_llava(config.model_type)
        super().__init__(config)
        block = self.model.language_model.layers[config.rotated_layer]
        block.visual_rotation = VisualRotation(config.text_config.hidden_size)
        self.model.register_forward_pre_hook(_find_visual_tokens, with_kwargs=True)
        block.register_forward_pre_hook(_rotate_visual_tokens, with_kwargs=True)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, and refuse weights that lack a tensor."""
        wants_report = kwargs.pop("output_loading_info", False)
        load: Any = super().from_pretrained
        model, report = load(*args, output_loading_info=True, **kwargs)
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if names := sorted(str(name) for name in report.get(kind) or ()):
                raise RuntimeError(
                    f"{kind.replace('_', ' ')}: {', '.join(names[:5])} ({len(names)} in all); "
                    "this version of transformers does not read this folder"
                )
        return (model, report) if wants_report else model


def _find_visual_tokens(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Mark the image tokens of a prompt; without an image nothing is marked."""
    images = ("pixel_values", "mm_encoder_outputs")
    if all(kwargs.get(name) is None for name in images) and len(args) < 2:
        return args, kwargs
    ids = kwargs.get("input_ids", args[0] if args else None)
    if ids is not None:
        visual = ids == model.config.image_token_id
    else:
        table = model.get_input_embeddings().weight
        visual = (kwargs["inputs_embeds"] == table[model.config.image_token_id]).all(-1)
    return args, {**kwargs, "visual_tokens": visual}


def _rotate_visual_tokens(
    block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    visual = kwargs.get("visual_tokens")
    if visual is None:
        return None
    if args:
        return (block.visual_rotation(args[0], visual), *args[1:]), kwargs
    turned = block.visual_rotation(kwargs["hidden_states"], visual)
    return args, {**kwargs, "hidden_states": turned}
