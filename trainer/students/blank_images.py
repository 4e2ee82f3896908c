"""Take a batch without images the way that a batch with images goes.

All ranks use the same modules in the same order, whatever their records show.
"""

from typing import Any

from torch import nn

from .families import family_of
from .probe import Tap


def show_blank_images(model: Any) -> None:
    """Let a batch without images go through vision tower and projector too, in place.

    What they say of `tap.blank` is multiplied by 0 and added to the embedded tokens, so the
    projector gets a gradient of zeros. It happens where a batch with images would do it: between
    the embedding of the tokens and the first decoder layer.

    Args:
        model: as for `attach`.
    """
    inner = model.model

    def show(
        _language: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        tap: Tap | None = kwargs.get("tap")
        if tap is None or tap.blank is None:
            return None
        features = inner.get_image_features(**tap.blank)
        features = getattr(features, "pooler_output", features)
        embedded = kwargs["inputs_embeds"]
        total = sum((feature.sum() for feature in features), start=embedded.new_zeros(()))
        return args, {**kwargs, "inputs_embeds": embedded + 0.0 * total}

    language = model.get_submodule(family_of(model).language)
    language.register_forward_pre_hook(show, with_kwargs=True)
