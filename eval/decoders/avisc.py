"""AVISC: contrast with the image tokens that draw most attention (Woo et al., arXiv 2405.17820)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .attention import last_rows
from .call import Call, contrasted, generators, projected
from .prompts import Embedded, embed
from .settings import Avisc
from .streams import Contrast, ContrastStream


@contextmanager
def avisc(spec: Avisc, call: Call) -> Iterator[list[LogitsProcessor]]:
    """Make the processors of one call.

    The attention of the prompt's last position is read while the normal prompt goes through the
    model, so no other pass is needed; the set of blind tokens stays for the whole answer.
    """
    rows: dict[int, Tensor] = {}

    def read(layer: int, scores: Tensor) -> None:
        rows[layer] = scores.softmax(-1).mean(1)

    def open_stream() -> ContrastStream:
        reading.close()  # the prompt has been read
        prompt = embed(call.model, call.prompt, features[0] if features else None)
        hidden = hidden_tokens(torch.stack([rows[k] for k in range(call.layers)]), prompt, spec)
        changed = prompt.with_visual(_replacement(spec, call, prompt), hidden)
        return ContrastStream(call.model, changed, call.prompt.length)

    def combine(logits: Tensor, other: Tensor, _done: int) -> Tensor:
        return contrasted(logits, other, spec.alpha, spec.beta)

    with projected(call.model) as features, ExitStack() as reading:
        reading.enter_context(last_rows(call.model, range(call.layers), read))
        yield [Contrast(open_stream, combine, call.prompt.length)]


def hidden_tokens(attention: Tensor, prompt: Embedded, spec: Avisc) -> Tensor:
    """Image tokens that the contrast prompt does not show: all but the blind ones.

    Args:
        attention: [L, B, T] of the last position, mean over heads.
        prompt: where the image tokens are.
        spec: gamma and lambda.

    Returns:
        [B, T] bool.
    """
    hidden = torch.zeros_like(prompt.visual)
    for row, visual in enumerate(prompt.visual):
        if visual.any():
            blind = blind_tokens(attention[:, row, visual], spec.gamma, spec.lambda_)
            hidden[row, visual] = ~blind
    return hidden


def blind_tokens(attention: Tensor, gamma: float, lambda_: float) -> Tensor:
    """Image tokens whose attention stands out, in the layers that look at the image most.

    Args:
        attention: [L, N] of the prompt's last position at the image tokens, mean over heads.
        gamma: the fewest layers are read whose share of all that attention reaches this.
        lambda_: a token stands out from mean + lambda * standard deviation on.

    Returns:
        [N] bool.
    """
    share = attention.sum(1) / attention.sum()
    ordered, layers = share.sort(descending=True)
    count = 1 + int((ordered.cumsum(0) < gamma).sum())
    mean = attention[layers[:count]].mean(0)
    # An infinite lambda times no spread at all would be no number.
    spread = mean.std().clamp_min(torch.finfo(mean.dtype).tiny)
    return mean >= mean.mean() + lambda_ * spread


def _replacement(spec: Avisc, call: Call, prompt: Embedded) -> Tensor:
    if spec.scheme == "zeros":
        return torch.zeros(())
    if spec.scheme == "ones":
        return torch.ones(())
    shape = prompt.embeds.shape[1:]
    # Counted from the end, where prompts of different length are aligned.
    noise = [
        torch.randn(shape, generator=generator).flip(0)
        for generator in generators(call.ids, call.seed, "embeddings")
    ]
    return torch.stack(noise)
