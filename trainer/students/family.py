"""What medalign must know of a model family; everything else is the same for all of them.

A family is one `Family` in one file of this folder, listed in `families.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ...teacher_cache.schema import PatchGrid
from ..data.conversation import Frame

Float32 = npt.NDArray[np.float32]


class StudentError(ValueError):
    """A folder does not hold a student that medalign can train."""


class UnfitShapeError(ValueError):
    """An image is too long or too small for a student."""


class Sight(Protocol):
    """How a student sees an image. Picklable."""

    @property
    def fixed_grid(self) -> PatchGrid | None:
        """Visual tokens of every image; None when they depend on the image."""

    def see(self, rgb: npt.NDArray[np.uint8]) -> tuple[Float32, PatchGrid]:
        """Turn uint8 [H, W, 3] into what the tower takes, and the grid of its visual tokens.

        Pixels are [3, S, S], or [patches, values] for a tower that takes flattened patches.

        Raises:
            UnfitShapeError: the student cannot take an image of this shape.
        """

    def __str__(self) -> str:
        """A few words for a user."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """One kind of student.

    Attributes:
        model_type: as in config.json.
        model_class: its class in transformers, the one that generates.
        processor_class: the class of its processor.
        projector: path of the module between vision and language that is trained.
        language: path of the language model; it holds the decoder's `layers`, its linear layers
            get LoRA.
        head: path of the linear layer that gives logits.
        attentions: kernels that compute what the family was trained with.
        check: raises StudentError for a configuration that is not supported.
        sight: image processor and recipe's geometry -> how the student sees an image.
        frame: how an image stands in a prompt, see `Frame`, and the placeholder that the chat
            template writes.
        blank: one black image, as small as can be, as `get_image_features` takes it.
        inputs: what the model takes beside tokens, mask and pixels: made from its configuration,
            `input_ids` [B, T] and the grids [P, 2] (rows, columns) of the batch's images.
    """

    model_type: str
    model_class: Any
    processor_class: Any
    projector: str
    language: str = "model.language_model"
    head: str = "lm_head"
    attentions: tuple[str, ...] = ("sdpa", "flash_attention_2")
    check: Callable[[Path, Any], None]
    sight: Callable[[Path, Any, Any, str], Sight]
    frame: Callable[[Path, Any, Any], tuple[str, Frame]]
    inputs: Callable[[Any, Tensor, Tensor | None], dict[str, Tensor]]
    blank: Callable[[Any, torch.device, torch.dtype], dict[str, Tensor]]

    @property
    def projector_name(self) -> str:
        """Last part of the projector's path, by which PEFT carries it."""
        return self.projector.rpartition(".")[2]


def image_token_of(path: Path, config: Any, tokenizer: Any) -> str:
    """The text of the token that stands for one visual token.

    Raises:
        StudentError: the tokenizer has no such token.
    """
    token = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if token is None:
        raise StudentError(
            f"{path}: the student has no image token: config.json names id "
            f"{config.image_token_id}, which the tokenizer does not know"
        )
    return str(token)


def first_line(error: Exception) -> str:
    """First line of a library's message; the rest is often a page."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = cast(Exception, error.__cause__)  # its own first line holds no reason
    return str(error).strip().partition("\n")[0]
