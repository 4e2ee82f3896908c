"""DAMRO: contrast with the patches that the vision tower's class token attends to.

Gong et al., arXiv 2410.04514.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from .call import Call, Cut, contrasted, projected
from .prompts import Embedded, embed
from .settings import Damro, DecodingError
from .streams import Contrast, ContrastStream


@contextmanager
def damro(spec: Damro, call: Call) -> Iterator[list[LogitsProcessor]]:
    """Make the processors of one call; the vision tower runs once, for both streams.

    Differs from the released code of MedAlign: there the set of patches is erased at every forward
    pass, so l' = l; `variant=reference` computes exactly that.
    """
    if spec.variant == "reference" or call.pixels is None:
        yield [Cut(spec.beta)]
        return
    model = call.model

    def open_stream() -> ContrastStream:
        prompt = embed(model, call.prompt, features[0])
        top = top_patches(rows[0], spec.top_tokens)
        other = _contrast_prompt(prompt, top, call, spec.mode)
        return ContrastStream(model, other, call.prompt.length)

    def combine(logits: Tensor, other: Tensor, _done: int) -> Tensor:
        return contrasted(logits, other, spec.alpha, spec.beta)

    with projected(model) as features, class_attention(model, spec) as rows:
        yield [Contrast(open_stream, combine, call.prompt.length)]


def check_tower(spec: Damro, config: Any) -> None:
    """Refuse a student whose tower DAMRO cannot read; `config` is the student's.

    Raises:
        DecodingError: the tower has no class token, or no such layer.
    """
    tower = config.vision_config
    if config.vision_feature_select_strategy != "default":
        raise DecodingError(
            f"damro needs a vision tower with a class token, {tower.model_type} has none"
        )
    if -spec.layer > tower.num_hidden_layers:
        raise DecodingError(
            f"damro: layer is {spec.layer}, the vision tower has {tower.num_hidden_layers} layers"
        )


@contextmanager
def class_attention(model: Any, spec: Damro) -> Iterator[list[Tensor]]:
    """Compute the class token's attention to the patches while the tower reads the images.

    Yields:
        A list that holds [P, N] float32 first, once the images have been read.

    Raises:
        DecodingError: as `check_tower`.
    """
    tower = model.model.vision_tower
    check_tower(spec, model.config)
    layers = next(
        module for name, module in tower.named_modules() if name.endswith("encoder.layers")
    )
    rows: list[Tensor] = []

    def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        rows.append(class_row(block, states, split_heads=spec.split_heads))

    block = layers[spec.layer].self_attn
    hook = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def class_row(block: Any, states: Tensor, *, split_heads: bool) -> Tensor:
    """Attention of the class token to the patches.

    Args:
        block: an attention module with `q_proj` and `k_proj`.
        states: [P, 1 + N, C] that it gets, class token first.
        split_heads: as the tower itself attends, mean over heads; else one softmax over products
            of the whole width, as the method's own code.

    Returns:
        [P, N] float32.
    """
    images, tokens, width = states.shape
    heads = block.num_heads if split_heads else 1
    query = block.q_proj(states[:, :1]).float().view(images, 1, heads, width // heads)
    key = block.k_proj(states).float().view(images, tokens, heads, width // heads)
    scores = torch.einsum("pqhd,pthd->pht", query, key) * (width // heads) ** -0.5
    attention: Tensor = scores.softmax(-1).mean(1)[:, 1:]
    return attention


def top_patches(attention: Tensor, count: int) -> Tensor:
    """Indices [P, count] of the patches with most attention [P, N], most first.

    Raises:
        DecodingError: there are fewer patches.
    """
    if count > attention.shape[1]:
        raise DecodingError(
            f"damro: top_tokens is {count}, an image of this student has {attention.shape[1]}"
        )
    return attention.topk(count, dim=-1).indices


def shown_patches(
    prompt: Embedded, top: Tensor, images: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return the positions of the patches that stay, and their order.

    Args:
        prompt: B prompts of T tokens.
        top: [P, k] indices of each image's patches, most attended first.
        images: which of the P images stand in each prompt.

    Returns:
        [B, T] bool, True at patches that stay; [B, T] by which to sort: text keeps its place, an
        image's patches follow each other from its first place on, most attended first.
    """
    batch, tokens = prompt.visual.shape
    stays = torch.zeros_like(prompt.visual)
    order = torch.arange(tokens, device=top.device, dtype=torch.float64).repeat(batch, 1)
    within = torch.arange(top.shape[1], device=top.device, dtype=torch.float64) / top.shape[1]
    for row, own in enumerate(images):
        if not own:
            continue
        positions = prompt.visual[row].nonzero()[:, 0].view(len(own), -1)
        for patches, image in zip(positions, own, strict=True):
            best = patches[top[image]]
            stays[row, best] = True
            order[row, best] = patches[0] + within
    return stays, order


def _contrast_prompt(prompt: Embedded, top: Tensor, call: Call, mode: str) -> Embedded:
    """Show the chosen patches alone: the others become zero, or are left out."""
    images = [call.images_of(row) for row in range(len(call.ids))]
    stays, order = shown_patches(prompt, top, images)
    if mode == "zero":
        return prompt.with_visual(torch.zeros(()), prompt.visual & ~stays)
    visible = prompt.mask & (stays | ~prompt.visual)
    rows = [row.nonzero()[:, 0] for row in visible]
    return prompt.select([row[order[k, row].argsort()] for k, row in enumerate(rows)])
