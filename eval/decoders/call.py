"""One call of a decoder: model and prompts, the steps that decoders share, and noise."""

import hashlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from ...runtime.libraries import LibraryError
from ...trainer.students.families import family_of
from .prompts import Prompt
from .settings import DecodingError


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Call:
    """What a decoder works on.

    Attributes:
        model: a Llava model, rotation attached where it has one, PEFT wrapper taken off.
        prompt: the batch's tokens.
        inputs: all that the model takes.
        ids: record ids, which decide the draws.
        seed: of the run.
    """

    model: Any
    prompt: Prompt
    inputs: Mapping[str, Tensor | None]
    ids: Sequence[str]
    seed: int

    @property
    def pixels(self) -> Tensor | None:
        """Normalised pixels of all images, [P, 3, S, S]."""
        return self.inputs.get("pixel_values")

    @property
    def layers(self) -> int:
        """How many decoder layers the model has."""
        count: int = self.model.config.text_config.num_hidden_layers
        return count

    def images_of(self, row: int) -> list[int]:
        """Return which of the batch's images stand in a prompt."""
        if self.pixels is None:
            return []
        per_row = self.prompt.visual.sum(1).tolist()
        tokens = max(1, sum(per_row) // len(self.pixels))  # of one image
        begin = sum(per_row[:row]) // tokens
        return list(range(begin, begin + per_row[row] // tokens))


def check_images(model: Any, prompt: Prompt, pixels: Tensor | None) -> None:
    """Refuse a batch whose image tokens are not those of its images.

    Args:
        model: a Llava model; others are left to check themselves.
        prompt: the batch's tokens.
        pixels: [P, 3, S, S] or None.

    Raises:
        DecodingError: names the number of each.
    """
    if model.config.model_type != "llava":
        return
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    images = 0 if pixels is None else len(pixels)
    per_prompt: list[int] = prompt.visual.sum(1).tolist()
    if sum(per_prompt) != images * tokens or any(count % tokens for count in per_prompt):
        raise DecodingError(
            f"prompts have {per_prompt} image tokens for {images} images of {tokens} tokens each; "
            "give pixel_values [P, 3, S, S] of every image, in the order of the prompts"
        )


@contextmanager
def projected(model: Any) -> Iterator[list[Tensor]]:
    """Keep the projector's output, so that a second stream need not encode images again.

    Yields:
        A list that holds [P, N, C] of the normal prompt first, once that has been read.
    """
    features: list[Tensor] = []

    def keep(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        features.append(output)

    hook = model.get_submodule(family_of(model).projector).register_forward_hook(keep)
    try:
        yield features
    finally:
        hook.remove()


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """Return projected features [P, N, C] of pixels [P, 3, S, S]."""
    features = model.get_image_features(pixel_values=pixels)
    return torch.stack(list(getattr(features, "pooler_output", features)))


def cache_keyword(model: Any) -> str:
    """Return the argument by which a model takes its key-value cache.

    `past_key_values` up to transformers 5.23; 5.24 renames it to `cache` and drops the old name
    in 5.40, so the name is read from the signature rather than from a version.

    Args:
        model: a model, or its class.

    Raises:
        LibraryError: the model takes neither.
    """
    parameters = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in parameters:
            return name
    raise LibraryError("transformers", f"passes {type(model).__name__} a cache in another way")


def generators(ids: Sequence[str], seed: int, purpose: str = "") -> list[torch.Generator]:
    """Return one generator per record, on the CPU: a GPU would draw other numbers.

    Args:
        ids: of the records.
        seed: of the run.
        purpose: other purposes draw other numbers; empty for the tokens themselves.
    """
    drawn = []
    for record in ids:
        key = f"{seed}/{record}/{purpose}" if purpose else f"{seed}/{record}"
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
        drawn.append(generator)
    return drawn


def keep_plausible(scores: Tensor, logits: Tensor, beta: float) -> Tensor:
    """Cut tokens off that the model finds less likely than beta times its most likely one.

    Adaptive plausibility constraint (Li et al., Contrastive Decoding, arXiv 2210.15097).

    Args:
        scores: [B, V], what is cut.
        logits: [B, V], what decides: logits or log-probabilities of the normal stream.
        beta: 0 keeps every token, 1 the most likely one.

    Returns:
        [B, V], -inf where cut.
    """
    if beta == 0:
        return scores
    cutoff = logits.amax(-1, keepdim=True) + math.log(beta)
    return scores.masked_fill(logits < cutoff, float("-inf"))


def contrasted(logits: Tensor, other: Tensor, alpha: float, beta: float) -> Tensor:
    """(1 + alpha) l - alpha l', cut to plausible tokens (VCD, arXiv 2311.16922, Eq. 3 and 4).

    Args:
        logits: l, [B, V] float32 of the normal stream.
        other: l', [B, V] float32 of the other stream.
        alpha: 0 leaves l.
        beta: of the cut.
    """
    return keep_plausible((1 + alpha) * logits - alpha * other, logits, beta)


def refuse_no_numbers(scores: Tensor, decoder: str) -> None:
    """Refuse scores [B, V] if a row has no finite largest score; a single -inf is a cut.

    Raises:
        DecodingError: a row holds NaN or inf, or nothing but -inf.
    """
    if not scores.amax(-1).isfinite().all():
        raise DecodingError(
            f"{decoder}: the scores of the next token are no numbers; the decoder's settings are "
            "too large or too small, or the student's weights are damaged (greedy fails as well)"
        )


class Finite(LogitsProcessor):
    """The last step before a token is taken: its scores are numbers."""

    def __init__(self, decoder: str) -> None:
        self._decoder = decoder

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] as they are; raises as `refuse_no_numbers` does."""
        refuse_no_numbers(scores, self._decoder)
        return scores


class Cut(LogitsProcessor):
    """The cut to plausible tokens alone, which a contrast with the same stream amounts to."""

    def __init__(self, beta: float) -> None:
        self._beta = beta

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] with implausible tokens at -inf."""
        return keep_plausible(scores, scores, self._beta)


class PerRecordNoise(LogitsProcessor):
    """Turn the argmax into a sample: the Gumbel-max trick with a generator per record.

    argmax(log p + G) with independent standard Gumbel noise G is distributed as p. Sampling from
    one generator for the whole batch would make an answer depend on its neighbours, and a resumed
    run differ from an uninterrupted one.
    """

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        self._generators = generators(ids, seed)

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add noise to log-probabilities [B, V]."""
        noise = torch.stack(
            [
                torch.rand(scores.shape[1], generator=g, dtype=torch.float64)
                for g in self._generators
            ]
        )
        tiny = torch.finfo(torch.float64).tiny
        gumbel = -(-noise.clamp_min(tiny).log()).log()
        return scores.log_softmax(-1) + gumbel.to(scores)
