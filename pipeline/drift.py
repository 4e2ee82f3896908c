"""How far a stored row may be from what the expert says of its image now.

That is not zero: another device, batch or library adds up the same numbers in another order, and
the store rounds. Both parts are in `base_tolerance`:

- *Computing.* Measured on a pretrained ViT-S/14 (DINOv2, 518 px) and on ViT-B/16, ViT-L/14-336 and
  the demo expert with random weights, as the length of the difference of two unit patches: at most
  1e-6 between batches and thread counts in float32; 1.9e-3 when a GPU rounds to TF32, which torch
  lets convolutions do by default; 3.2e-2 between bfloat16 and float32. The Gram then differs by at
  most 5e-7, 1.7e-3 and 2.7e-2, attention by 3e-6, 2.4e-3 and 4.9e-2 of its largest value. The
  pretrained tower was the worst, so three to five times that is allowed to larger ones.
- *Storing.* A float16 has 11 significant bits, so a rounded patch is off by at most 2^-11 of its
  length, a cosine of two of them by 2^-10. Codec `gram` measures its errors as it writes, and the
  largest of them is what a pair may be off.

Even if every pair of patches were at the limit, that would put a floor of 1e-4 (float32) or 1e-2
(bfloat16) under L_vis, a mean of squares of Gram differences. Other weights, another geometry or
another colour behind transparent pixels are far outside: they turn patches by tenths.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..teacher_cache.certificate import Certificate, Deviation, Tolerance
from ..teacher_cache.gram_errors import GramErrors
from ..teacher_cache.reader import TeacherCache, TeacherRow
from ..teacher_cache.schema import CacheCard

_FLOAT32 = Tolerance(cosine=1 - 0.008**2 / 2, gram=0.008, attention=0.01)
_BFLOAT16 = Tolerance(cosine=1 - 0.12**2 / 2, gram=0.08, attention=0.18)
_COMPUTING = {"float32": _FLOAT32}
_STORING = Tolerance(cosine=1 - 2.0**-23, gram=2.0**-10, attention=0.0)


class DriftError(RuntimeError):
    """Recomputed rows are not those that the cache holds."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the expert says of one image today.

    Attributes:
        patches: [N, b] float32, unit rows on the student's grid.
        attention: [N] float32.
        valid: [N] bool.
        source_size: height and width of the image in pixels.
    """

    patches: NDArray[np.float32]
    attention: NDArray[np.float32]
    valid: NDArray[np.bool_]
    source_size: tuple[int, int]

    def gram(self) -> NDArray[np.float32]:
        """Return the cosine similarity of all patches, [N, N]."""
        gram: NDArray[np.float32] = self.patches @ self.patches.T
        return gram


def base_tolerance(card: CacheCard, *dtypes: str, errors: GramErrors | None = None) -> Tolerance:
    """Return what rows of a cache may be off when recomputed in `dtypes`: computing plus storing.

    The coarsest of them and of the card's own counts; an unknown one is as coarse as bfloat16.
    `errors` are those that a cache of codec `gram` measured when it was written.
    """
    computing = _FLOAT32
    for dtype in (card.dtype, *dtypes):
        computing = computing.looser(_COMPUTING.get(dtype, _BFLOAT16))
    storing = _STORING if errors is None else replace(_STORING, gram=errors.largest)
    return Tolerance(
        cosine=computing.cosine + storing.cosine - 1,
        gram=computing.gram + storing.gram,
        attention=computing.attention + storing.attention,
    )


def compare(row: TeacherRow, seen: Seen) -> Deviation:
    """Return how far a stored row is from what the expert says now, over its image patches."""
    both = row.valid & seen.valid
    other = []
    if different := int((row.valid != seen.valid).sum()):
        other.append(f"{different} patches changed between image and padding")
    if row.source_size != seen.source_size:
        was, now = ("x".join(map(str, size)) for size in (row.source_size, seen.source_size))
        other.append(f"the image had {was} pixels and has {now}")
    gram = np.abs(row.gram() - seen.gram())[np.ix_(both, both)]
    attention = np.abs(row.attention - seen.attention)[both]
    largest = max(row.attention[both].max(initial=0), seen.attention[both].max(initial=0), 1e-30)
    return Deviation(
        cosine=(
            _least_cosine(row.features[both], seen.patches[both]) if row.code is None else None
        ),
        gram=float(gram.max(initial=0)),
        attention=float(attention.max(initial=0)),
        attention_share=float(attention.max(initial=0) / largest),
        other=", ".join(other),
    )


def _least_cosine(stored: NDArray[np.float16], seen: NDArray[np.float32]) -> float:
    # In float64: near 1 a float32 would round the difference away.
    a, b = stored.astype(np.float64), seen.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.einsum("nb,nb->n", a, b) / np.maximum(lengths, 1e-30)
    return min(1.0, float(cosines.min(initial=1)))


def refuse_drift(cache: TeacherCache, found: Certificate) -> None:
    """Refuse a cache whose rows are not what the expert says.

    Raises:
        DriftError: names the worst row, its image, and every number that is outside.
    """
    if wrong := found.outside():
        raise DriftError(
            f"{cache.store}: row {found.worst_row} ({found.worst_path}) is not what the expert "
            f"says of this image now: {'; '.join(wrong)}. Reading images or the expert works in "
            "another way than when the cache was built, or its rows were altered; build it again "
            "into a new folder"
        )
