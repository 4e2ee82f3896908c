"""How the patches of an image become what a codec stores of them."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..teacher_cache.arrays import row_arrays
from ..teacher_cache.schema import CacheCard, ExpertCard
from .code_image import ImageCode, Patches, code_image
from .resample import ExpertOutput, to_grid
from .workers import Workers, result_of

Stored = Mapping[str, NDArray[Any]]

Finish = Callable[[], None]
"""Waits for what was begun with an image and stores it."""


class RowForm(Protocol):
    """One way to store what an expert says of images."""

    def empty(self, rows: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of `rows` rows, to be filled."""

    def of(self, output: ExpertOutput) -> tuple[Tensor, Tensor]:
        """Return, still on the device, what `put` takes of each image, and attention [B, N]."""

    def put(
        self, stored: Stored, at: int, patches: NDArray[Any], valid: NDArray[np.bool_]
    ) -> Finish | None:
        """Store an image as row `at`: at once, or when what this returns is called."""


def row_form(card: CacheCard, workers: Workers) -> RowForm:
    """Return the form of a cache's codec; heavy work goes to `workers`."""
    return GramForm(card, workers) if card.codec == "gram" else FeatureForm(card)


@dataclass(frozen=True)
class FeatureForm:
    """Codec `fp16`: patches on the student's grid, as unit vectors."""

    card: CacheCard

    def empty(self, rows: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of `rows` rows, to be filled."""
        return _zeros(self.card, rows)

    def of(self, output: ExpertOutput) -> tuple[Tensor, Tensor]:
        """Return float16 patches [B, N, b] and attention [B, N]."""
        patches, attention = on_grid(output, self.card)
        return patches.half(), attention

    def put(self, stored: Stored, at: int, patches: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Store an image as row `at`; padding patches are stored as they are."""
        del valid
        stored["features"][at] = patches


@dataclass(frozen=True)
class GramForm:
    """Codec `gram`: similarities of the patches in compact form, coded in worker processes."""

    card: CacheCard
    workers: Workers

    def empty(self, rows: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of `rows` rows, to be filled."""
        return _zeros(self.card, rows)

    def of(self, output: ExpertOutput) -> tuple[Tensor, Tensor]:
        """Return float32 patches [B, M, b] as they enter the interpolation, and attention."""
        _, attention = on_grid(output, self.card)
        return native_patches(output, self.card.expert), attention

    def put(
        self, stored: Stored, at: int, patches: NDArray[Any], valid: NDArray[np.bool_]
    ) -> Finish:
        """Begin to code an image; what this returns stores its code, or raises why it has none."""
        card = self.card
        error = card.max_gram_error
        assert error is not None, "a card of codec gram has one"
        task = Patches(patches, valid, card.expert.grid, card.grid, error)
        return partial(_store_code, stored, at, self.workers.submit(code_image, task))


def _store_code(stored: Stored, at: int, begun: "Future[ImageCode]") -> None:
    code = result_of(begun)
    stored["codes"][at, : len(code.blob)] = np.frombuffer(code.blob, np.uint8)
    stored["gram_error"][at] = code.rms, code.largest


def native_patches(output: ExpertOutput, expert: ExpertCard) -> Tensor:
    """Return patches [B, M, b] float32 on the expert's grid, as they enter the interpolation."""
    patches = output.patches.float()
    return F.normalize(patches, dim=-1) if expert.normalise_before_interpolation else patches


def on_grid(output: ExpertOutput, card: CacheCard) -> tuple[Tensor, Tensor]:
    """Return unit patches [B, N, b] and attention [B, N] on the student's grid, float32."""
    return to_grid(
        output,
        card.expert.grid,
        card.grid,
        normalise_before=card.expert.normalise_before_interpolation,
    )


def _zeros(card: CacheCard, rows: int) -> dict[str, NDArray[Any]]:
    return {
        array.name: np.zeros((rows, *array.row_shape), array.dtype) for array in row_arrays(card)
    }
