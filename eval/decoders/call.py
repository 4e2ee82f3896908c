"""One call of a decoder: the model, the prompts, and what is seen while they are read."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from ...trainer.students.families import family_of
from .plausible import keep_plausible
from .prompt import Prompt
from .settings import DecodingError


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Call:
    """What a decoder is given.

    Attributes:
        model: a Llava model, rotation attached where it has one, PEFT wrapper taken off.
        prompt: the batch's tokens.
        inputs: all that the model takes.
        ids: record ids, which decide what is drawn.
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
        """Which of the batch's images stand in a prompt."""
        if self.pixels is None:
            return []
        per_row = self.prompt.visual.sum(1).tolist()
        each = max(1, sum(per_row) // len(self.pixels))
        begin = sum(per_row[:row]) // each
        return list(range(begin, begin + per_row[row] // each))


def check_images(model: Any, prompt: Prompt, pixels: Tensor | None) -> None:
    """Refuse a batch whose image tokens are not those of its images.

    Args:
        model: a Llava model; others are left to check themselves.
        prompt: the batch's tokens.
        pixels: [P, 3, S, S] or None.

    Raises:
        DecodingError: says how many there are of each.
    """
    if model.config.model_type != "llava":
        return
    vision = model.config.vision_config
    each = (vision.image_size // vision.patch_size) ** 2
    images = 0 if pixels is None else len(pixels)
    per_prompt: list[int] = prompt.visual.sum(1).tolist()
    if sum(per_prompt) != images * each or any(count % each for count in per_prompt):
        raise DecodingError(
            f"prompts have {per_prompt} image tokens for {images} images of {each} tokens each; "
            "give pixel_values [P, 3, S, S] of every image, in the order of the prompts"
        )


class Cut(LogitsProcessor):
    """The cut to plausible tokens alone: what is left of a contrast with the same stream."""

    def __init__(self, beta: float) -> None:
        self._beta = beta

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] with implausible tokens at -inf."""
        return keep_plausible(scores, scores, self._beta)


@contextmanager
def projected(model: Any) -> Iterator[list[Tensor]]:
    """Keep what the projector gives, so that a second stream need not encode images again.

    Yields:
        A list that holds [P, N, C] of the normal prompt first, once that has been read.
    """
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        seen.append(output)

    hook = model.get_submodule(family_of(model).projector).register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """Projected features [P, N, C] of pixels [P, 3, S, S]."""
    found = model.get_image_features(pixel_values=pixels)
    return torch.stack(list(getattr(found, "pooler_output", found)))


def cache_keyword(model: Any) -> str:
    """Return the argument by which a model takes its key-value cache.

    `past_key_values` up to transformers 5.23; 5.24 renames it to `cache` and drops the old name
    in 5.40, so the name is read from the signature rather than from a version.

    Raises:
        DecodingError: the model takes neither.
    """
    parameters = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in parameters:
            return name
    raise DecodingError(
        f"{type(model).__name__} takes no key-value cache: neither `cache` nor `past_key_values` "
        "is among the arguments of its forward; install a version of transformers that "
        "constraints.txt names"
    )
