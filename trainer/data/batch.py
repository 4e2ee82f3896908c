"""A micro-batch: conversations, pixels and teacher rows, as tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...teacher_cache.reader import TeacherRow
from ...teacher_cache.schema import PatchGrid
from ..students.probe import Tap
from ..students.question_attention import Look
from .conversation import IGNORED, Encoded, Int64
from .teacher import Codes, Patches, Resampled, ResampledRow, Teacher, stack_padded, stack_rows

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, ready to be batched.

    Attributes:
        id: of its record.
        encoded: tokens; None when the sample was skipped.
        pixels: per image, [3, S, S] or [patches, values] float32 as the vision tower takes it.
        teachers: per image, its cache row on the grid of its visual tokens, or None.
        skipped: why it carries no weight, or an empty string.
        refused: why training must stop, or an empty string. An exception raised in a worker
            process would reach the user as that process's traceback.
        grids: per image, the grid of its visual tokens.
    """

    id: str
    encoded: Encoded | None = None
    pixels: tuple[Float32, ...] = ()
    teachers: tuple[TeacherRow | ResampledRow | None, ...] = ()
    skipped: str = ""
    refused: str = ""
    grids: tuple[PatchGrid, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """One micro-batch. B conversations of T tokens, P images, I of them with a teacher.

    Attributes:
        ids: record ids, B of them.
        input_ids: [B, T].
        attention_mask: [B, T], 1 on tokens.
        predicts: [A] positions in the flattened [B * T] whose next token belongs to an answer.
        targets: [A] those next tokens.
        pixel_values: [P, 3, S, S] float32, in the order of the placeholders, or the flattened
            patches of all images [patches, values]; None without images.
        teacher: None when no image has one.
        skipped: (record id, reason) of conversations that carry no weight.
        refused: why training must stop, one reason per conversation.
        cut: conversations that `max_length` shortened.
        grids: [P, 2] rows and columns of each image's visual tokens; None without images.
    """

    ids: tuple[str, ...]
    input_ids: Tensor
    attention_mask: Tensor
    predicts: Tensor
    targets: Tensor
    pixel_values: Tensor | None
    teacher: Teacher | None
    skipped: tuple[tuple[str, str], ...] = ()
    refused: tuple[str, ...] = ()
    cut: int = 0
    grids: Tensor | None = None

    @property
    def answer_tokens(self) -> int:
        """Tokens that the language-model loss is summed over."""
        return len(self.targets)

    @property
    def tokens(self) -> int:
        """Tokens that are attended to, image tokens counted."""
        return int(self.attention_mask.sum())

    @property
    def teacher_images(self) -> int:
        """I, the images that the two distillation losses are summed over."""
        return 0 if self.teacher is None else len(self.teacher.attention)

    def tap(self, image_token_id: int) -> Tap:
        """Make a fresh tap for this batch."""
        look = None if self.teacher is None else self.teacher.look
        return Tap(self.input_ids == image_token_id, look)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Batch":
        """Move every tensor; pixels take `dtype`."""
        moved = _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))
        pixels = moved.pixel_values
        return replace(moved, pixel_values=None if pixels is None else pixels.to(dtype))

    def pin_memory(self) -> "Batch":
        """Copy every tensor to pinned memory; a DataLoader calls this."""
        return _map_tensors(self, Tensor.pin_memory)


Tree = TypeVar("Tree", bound=Batch | Teacher | Look | Patches | Codes | Resampled)


def _map_tensors(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """Change every tensor of a batch, those of its teacher included."""
    changed: dict[str, Any] = {}
    for field in fields(tree):
        value = getattr(tree, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif isinstance(value, Teacher | Look | Patches | Codes | Resampled):
            changed[field.name] = _map_tensors(value, change)
    return replace(tree, **changed)


def collate(samples: Sequence[Sample], pad_id: int, *, left: bool = False) -> Batch:
    """Pad conversations to one length and stack what belongs to their images.

    Args:
        samples: at least one.
        pad_id: token for the padding, which is never attended to.
        left: pad on the left, for generation.
    """
    encodings = [sample.encoded or _nothing(pad_id) for sample in samples]
    tokens = max(len(encoded.input_ids) for encoded in encodings)
    input_ids = np.full((len(encodings), tokens), pad_id, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    labels = np.full_like(input_ids, IGNORED)
    offsets = []
    for row, encoded in enumerate(encodings):
        begin = tokens - len(encoded.input_ids) if left else 0
        span = slice(begin, begin + len(encoded.input_ids))
        input_ids[row, span] = encoded.input_ids
        mask[row, span] = 1
        labels[row, span] = encoded.labels
        offsets.append(begin)
    # On the CPU: picking answers by a mask on the GPU would wait for it.
    predicts = np.flatnonzero(labels[:, 1:] != IGNORED)
    rows, columns = np.divmod(predicts, max(1, tokens - 1))
    pixels = [image for sample in samples for image in sample.pixels]
    grids = [(grid.rows, grid.cols) for sample in samples for grid in sample.grids]
    return Batch(
        ids=tuple(sample.id for sample in samples),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask),
        predicts=torch.from_numpy(rows * tokens + columns),
        targets=torch.from_numpy(labels[rows, columns + 1]),
        pixel_values=_pixels(pixels),
        teacher=_teacher(samples, offsets, torch.from_numpy(mask.astype(bool))),
        skipped=tuple((sample.id, sample.skipped) for sample in samples if sample.skipped),
        refused=tuple(sample.refused for sample in samples if sample.refused),
        cut=sum(encoded.cut > 0 for encoded in encodings),
        grids=torch.tensor(grids) if grids else None,
    )


def _pixels(images: Sequence[Float32]) -> Tensor | None:
    if not images:
        return None
    squares = images[0].ndim == 3
    return torch.from_numpy(np.stack(images) if squares else np.concatenate(images))


def _nothing(pad_id: int) -> Encoded:
    """One token that nobody learns from: keeps a skipped conversation's place in the batch."""
    ids = np.asarray([pad_id], dtype=np.int64)
    return Encoded(ids, np.full_like(ids, IGNORED), (), (), cut=0)


def _teacher(samples: Sequence[Sample], offsets: Sequence[int], keys_ok: Tensor) -> Teacher | None:
    images = [
        (row, sample.encoded.cols[k] + offsets[row], sample.encoded.rows[k] + offsets[row], cached)
        for row, sample in enumerate(samples)
        if sample.encoded is not None
        for k, cached in enumerate(sample.teachers)
        if cached is not None
    ]
    if not images:
        return None
    owners, image_cols, image_rows, cached_rows = zip(*images, strict=True)
    rows, rows_ok = _padded(image_rows)
    cols, cols_ok = _padded(image_cols)
    look = Look(
        owner=torch.tensor(owners),
        cols=cols,
        rows=rows,
        rows_ok=rows_ok,
        keys_ok=keys_ok,
        cols_ok=None if cols_ok.all() else cols_ok,
    )
    return stack_rows(cached_rows, look)


def _padded(positions: Sequence[Int64]) -> tuple[Tensor, Tensor]:
    """Stack positions of different number: [I, most], and which of them are no padding."""
    stacked = stack_padded(positions)
    lengths = torch.tensor([len(numbers) for numbers in positions])
    return stacked, torch.arange(stacked.shape[1]) < lengths[:, None]
