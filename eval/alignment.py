"""Measure both alignment losses of a student on held-out images, and its question's attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..pipeline.manifest import Record
from ..teacher_cache.reader import TeacherCache
from ..trainer.data.batch import collate
from ..trainer.data.dataset import Conversations
from ..trainer.losses import attention_alignment_terms, gram_alignment_terms
from ..trainer.objective import look
from ..trainer.recipe.sections import LossSection
from ..trainer.student import llava_of
from ..trainer.students.spec import StudentSpec
from .predictions import AnswersError

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Losses and attention of a student on a set of records.

    Attributes:
        lm: mean cross-entropy over answer tokens, in nats.
        vis: mean L_vis over images (Eq. 4).
        att: mean L_att over images (Eq. 5).
        attention: record id -> [N] attention of its first question to its first image, layer l.
    """

    lm: float
    vis: float
    att: float
    attention: dict[str, Float32]


@torch.inference_mode()
def measure(
    model: Any,
    spec: StudentSpec,
    records: Sequence[Record],
    images: Path,
    cache: TeacherCache,
    loss: LossSection,
    batch_size: int = 4,
) -> Measured:
    """Measure a student that has the probe of layer `loss.layer`.

    Args:
        model: with `attach(..., probe=True)`, or from `load_student(..., probe=True)`.
        spec: of its folder.
        records: with images that the cache has.
        images: folder of the images.
        cache: the expert's patches and attention.
        loss: kind and temperature of the attention loss.
        batch_size: records at a time.

    Raises:
        AnswersError: a record cannot be read, or its image is not the cached one.
    """
    inner = llava_of(model)
    device, dtype = inner.device, inner.dtype
    samples = Conversations(records, images, spec, 1 << 30, cache)
    sums, tokens, count = torch.zeros(3, dtype=torch.float64), 0, 0
    maps: dict[str, Float32] = {}
    for begin in range(0, len(records), batch_size):
        picked = [samples[k] for k in range(begin, min(begin + batch_size, len(records)))]
        batch = collate(picked, pad_id=0).to(device, dtype)
        if unread := [*batch.refused, *(f"record {i!r}: {why}" for i, why in batch.skipped)]:
            raise AnswersError(f"cannot measure: {unread[0]}")
        lm, tap = look(inner, batch)
        sums[0] += lm.double().cpu()
        tokens += batch.answer_tokens
        if batch.teacher is None or tap.states is None or tap.attention is None:
            continue
        teacher = batch.teacher
        vis = gram_alignment_terms(tap.states, teacher.gram(), teacher.valid)
        att = attention_alignment_terms(
            tap.attention, teacher.attention, teacher.valid, loss.attention, loss.temperature
        )
        sums[1:] += torch.stack([vis.sum(), att.sum()]).double().cpu()
        count += len(vis)
        valid = teacher.look.cols_ok  # None where no image has fewer patches than another
        for k, owner in enumerate(teacher.look.owner.tolist()):
            row = tap.attention[k] if valid is None else tap.attention[k][valid[k]]
            maps.setdefault(batch.ids[owner], row.float().cpu().numpy())
    lm_sum, vis_sum, att_sum = sums.tolist()
    return Measured(
        lm=lm_sum / max(1, tokens),
        vis=vis_sum / max(1, count),
        att=att_sum / max(1, count),
        attention=maps,
    )


def mass_inside(attention: Float32, covered: Float32, valid: npt.NDArray[np.bool_]) -> float:
    """Return the share of an image's attention that falls inside a mask, without padding.

    Args:
        attention: [N], any scale.
        covered: [N] share of each patch that the mask covers.
        valid: [N] False where a patch is padding.
    """
    weight = np.where(valid, attention, 0.0).astype(np.float64)
    return float((weight * covered).sum() / weight.sum())
