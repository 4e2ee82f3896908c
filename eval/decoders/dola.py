"""DoLa: contrast with the prediction of an earlier layer (Chuang et al., arXiv 2309.03883)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from ...trainer.students.families import family_of
from .call import Call, keep_plausible
from .settings import DecodingError, Dola


@contextmanager
def dola(spec: Dola, call: Call) -> Iterator[list[LogitsProcessor]]:
    """Make the processors of one call: one forward pass per token, |C| more rows of the head."""
    layers = premature_layers(spec.layers, call.layers)
    with ExitStack() as hooks:
        states = _LastStates(hooks, call.model, layers)
        processors: list[LogitsProcessor] = [_Contrast(spec, call.model, states)]
        if spec.repetition_penalty != 1:
            processors.append(_Repetition(spec.repetition_penalty, call.prompt.mask))
        yield processors


def premature_layers(text: str, layers: int) -> list[int]:
    """Layers whose input is compared, in ascending order; layer 0 reads the embeddings.

    Args:
        text: `low`, `high`, or numbers with commas.
        layers: how many the model has.

    Raises:
        DecodingError: none of these, or the model has no such layer.
    """
    if text in ("low", "high"):
        half = (layers + 1) // 2
        low = text == "low"
        return [k for k in range(layers) if k % 2 == 0 and (k < half) == low] or [0]
    try:
        chosen = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise DecodingError(
            f"dola: layers takes low, high, or numbers such as 0,2,4, got {text!r}"
        ) from None
    if not all(0 <= k < layers for k in chosen):
        raise DecodingError(
            f"dola: layers is {text!r}, this student has layers 0 to {layers - 1}; "
            "take low, high or other numbers"
        )
    return chosen


def premature(mature: Tensor, earlier: Tensor, variant: str) -> Tensor:
    """Choose the layer to contrast with: the one that differs most from the last.

    Args:
        mature: [B, V] log-probabilities p.
        earlier: [K, B, V] log-probabilities q_k.
        variant: `published` compares by the Jensen-Shannon divergence, (KL(P|M) + KL(Q|M)) / 2
            with M the mean of both. `reference` by what the released code computes, which has
            the arguments the other way round, (KL(M|P) + KL(M|Q)) / 2. Ranges in nats; a factor
            1 / V of the code changes no choice and is left out.

    Returns:
        [B] index into K, the first of equals; each sample by itself.
    """
    return divergence(mature, earlier, variant).argmax(0)


def divergence(mature: Tensor, earlier: Tensor, variant: str) -> Tensor:
    """Divergence [K, B] of each earlier layer from the last one, see `premature`."""
    mean = torch.logaddexp(mature, earlier) - torch.log(torch.tensor(2.0))
    if variant == "reference":
        both = 2 * mean - mature - earlier
        return 0.5 * (mean.exp() * both).sum(-1)
    from_mature = mature.exp() * (mature - mean)
    from_earlier = earlier.exp() * (earlier - mean)
    return 0.5 * (from_mature + from_earlier).sum(-1)


def layer_contrast(logits: Tensor, earlier: Tensor, relative_top: float, variant: str) -> Tensor:
    """Subtract the log-probabilities of the layer that differs most, and cut: p - q_k.

    Args:
        logits: [B, V] float32 of the last layer.
        earlier: [K, B, V] float32 logits of the earlier ones.
        relative_top: of the cut.
        variant: see `premature`.
    """
    p, q = logits.log_softmax(-1), earlier.log_softmax(-1)
    chosen = premature(p, q, variant)
    other = q[chosen, torch.arange(len(p), device=p.device)]
    return keep_plausible(p - other, p, relative_top)


def punished(scores: Tensor, repeated: Tensor, penalty: float) -> Tensor:
    """Make repeated tokens less likely, whatever the sign of their scores (arXiv 1909.05858).

    Args:
        scores: [B, V].
        repeated: [B, V] bool.
        penalty: divides positive scores, multiplies negative ones.
    """
    lower = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(repeated, lower, scores)


class _LastStates:
    """Keeps [B, C] of the last position at the input of each of some layers."""

    def __init__(self, hooks: ExitStack, model: Any, layers: Sequence[int]) -> None:
        blocks = model.get_submodule(family_of(model).language).layers
        self._seen: dict[int, Tensor] = {}
        self._layers = layers
        for layer in layers:
            keep = self._keeper(layer)
            # Last of the layer's hooks: a rotation has been applied by then.
            hook = blocks[layer].register_forward_pre_hook(keep, with_kwargs=True)
            hooks.callback(hook.remove)

    def _keeper(self, layer: int) -> Any:
        def keep(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._seen[layer] = hidden[:, -1]

        return keep

    def stacked(self) -> Tensor:
        """[K, B, C]."""
        return torch.stack([self._seen[layer] for layer in self._layers])


class _Contrast(LogitsProcessor):
    def __init__(self, spec: Dola, model: Any, states: _LastStates) -> None:
        self._spec = spec
        self._head = model.get_output_embeddings()
        self._states = states

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        # One product for all layers, so that the head's weight is read once more and not K times.
        earlier = self._head(self._states.stacked()).float()
        return layer_contrast(scores.float(), earlier, self._spec.relative_top, self._spec.variant)


class _Repetition(LogitsProcessor):
    """Make tokens less likely that stand in the prompt or the answer.

    Not transformers' own, which also punishes the padding of a batch.

    Args:
        penalty: see `punished`.
        mask: [B, T] bool of the prompt, False on padding.
    """

    def __init__(self, penalty: float, mask: Tensor) -> None:
        self._penalty = penalty
        self._mask = mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        grown = input_ids.shape[1] - self._mask.shape[1]
        counted = torch.nn.functional.pad(self._mask, (0, grown), value=True)
        count = torch.zeros_like(scores).scatter_add_(1, input_ids, counted.to(scores))
        return punished(scores, count > 0, self._penalty)
