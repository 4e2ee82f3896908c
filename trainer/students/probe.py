"""Look inside one decoder layer while every layer runs SDPA or flash attention.

`attach` gives layer l its rotation (Eq. 1) and, for training, an attention probe. What a batch
needs inside travels as one keyword, `tap=Tap(...)`, through the model's `**kwargs` to the layer
and to its attention function; what was seen comes back on the same object. No global state, so
several batches may be in flight.

Only layer l's attention module gets its own copy of the text config, with a registered attention
function; masks and all other layers stay as they are. The probe recomputes the softmax rows of
the question alone: cost I * H * R * T, never H * T * T.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .families import family_of
from .question_attention import Look, question_attention


class VisualRotation(nn.Module):
    """x + W x on visual tokens, x elsewhere. W [C, C] is zero at the start: the exact identity.

    A module of its own, so that PEFT carries W through `modules_to_save` and ZeRO-3 gathers it.
    """

    def __init__(
        self, width: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width, dtype=dtype, device=device))

    def forward(self, hidden: Tensor, visual: Tensor) -> Tensor:
        """Rotate the visual tokens.

        Args:
            hidden: [B, T, C] input of layer l.
            visual: [B, T] bool, True at visual tokens.

        Returns:
            [B, T, C], equal to `hidden` where `visual` is False.
        """
        return torch.where(visual[..., None], hidden + F.linear(hidden, self.weight), hidden)


PROBE = "medalign_probe"


@dataclass(eq=False, slots=True)
class Tap:
    """Where the visual tokens are, where to look, and what was seen there.

    Attributes:
        visual: [B, T] bool, True at visual tokens.
        look: what to read; None reads nothing and only rotates.
        blank: an image to compute features of and throw away, see `show_blank_images`.
        states: out, [I, N, C] input of layer l at the visual tokens, after the rotation.
        attention: out, [I, N] float32 attention of layer l, mean over heads and question rows.
    """

    visual: Tensor
    look: Look | None = None
    blank: dict[str, Tensor] | None = None
    states: Tensor | None = None
    attention: Tensor | None = None


def attach(model: Any, layer: int, *, rotation: bool = True, probe: bool = True) -> None:
    """Put the rotation and the probe on one decoder layer, in place.

    The model itself finds its visual tokens in `input_ids` when nobody passes a tap, so plain
    calls and `generate` rotate too: in prefill, never on generated tokens.

    Args:
        model: of a known family, before PEFT.
        layer: l, counted from 0 as in the `layers` of the family's language model.
        rotation: add I + W at the input of the layer.
        probe: read the layer's question-to-image attention.
    """
    AttentionInterface.register(PROBE, _probe_attention)
    inner = model.model
    block = model.get_submodule(family_of(model).language).layers[layer]
    if rotation:
        # Not the first one: a quantized layer holds its weights as integers.
        weight = next(p for p in block.parameters() if p.is_floating_point())
        width = model.config.text_config.hidden_size
        block.visual_rotation = VisualRotation(width, weight.dtype, weight.device)
        inner.register_forward_pre_hook(_find_visual_tokens, with_kwargs=True)
    block.register_forward_pre_hook(_enter_layer, with_kwargs=True)
    if probe:
        attention = block.self_attn
        # A shallow copy: only this module sees another implementation name.
        config = copy.copy(attention.config)
        config._attn_implementation = PROBE
        attention.medalign_config, attention.config = attention.config, config


@contextmanager
def without_rotation(model: Any) -> Iterator[None]:
    """Take the rotation and everything that finds its visual tokens away, and put it back.

    What runs inside is the model as it was before `attach`, with equal weights elsewhere.

    Args:
        model: as for `attach`; without a rotation nothing happens.
    """
    own = (_find_visual_tokens, _enter_layer)
    taken: list[tuple[dict[int, Any], dict[int, Any]]] = []
    rotated = [m for m in model.modules() if getattr(m, "visual_rotation", None) is not None]
    weights = [block._modules.pop("visual_rotation") for block in rotated]
    for module in (model.model, *rotated):
        before: dict[int, Any] = module._forward_pre_hooks
        taken.append((before, before.copy()))
        for key in [key for key, hook in before.items() if hook in own]:
            del before[key]
    try:
        yield
    finally:
        for hooks, before in taken:
            hooks.clear()
            hooks.update(before)
        for block, rotation in zip(rotated, weights, strict=True):
            block.visual_rotation = rotation


def _find_visual_tokens(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    ids = kwargs.get("input_ids", args[0] if args else None)
    # A placeholder that the model generates by itself is no image, and is not rotated.
    sources = ("pixel_values", "mm_encoder_outputs")
    has_images = any(kwargs.get(name) is not None for name in sources)
    if has_images and kwargs.get("tap") is None and ids is not None:
        kwargs = {**kwargs, "tap": Tap(ids == model.config.image_token_id)}
    return args, kwargs


def _enter_layer(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    tap: Tap | None = kwargs.get("tap")
    if tap is None:
        return None
    hidden = args[0] if args else kwargs["hidden_states"]
    if tap.visual.shape != hidden.shape[:2]:
        raise RuntimeError(
            f"the tap was made for tokens {tuple(tap.visual.shape)}, "
            f"the layer got {tuple(hidden.shape[:2])}"
        )
    rotation = getattr(block, "visual_rotation", None)
    if rotation is not None:
        hidden = rotation(hidden, tap.visual)
    if tap.look is not None:
        tap.states = hidden[tap.look.owner[:, None], tap.look.cols]
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _probe_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    tap: Tap | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Run the layer's own attention; when a tap asks, read the question's rows beside it."""
    if tap is not None and tap.look is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        window = kwargs.get("sliding_window")
        tap.attention = question_attention(query, key, attention_mask, scale, tap.look, window)
    # The layer's own function looks up its implementation by name in the module's config.
    mine, module.config = module.config, module.medalign_config
    try:
        base: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS[
            module.config._attn_implementation
        ]
        return base(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    finally:
        module.config = mine


def show_blank_images(model: Any) -> None:
    """Let a batch without images go through vision tower and projector too, in place.

    Their features of `tap.blank` are multiplied by 0 and added to the embedded tokens, so the
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
