"""Recompute some rows of a cache with the expert, and judge what the cache holds by that.

A digest proves that bytes are as they were written; only the expert can prove that they were right.
The tolerance is what computing in another dtype or on another device, and storing, may change.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.progress import NoProgress, Progress
from ..teacher_cache.certificate import Certificate, Deviation, Skipped, Tolerance, read_certificate
from ..teacher_cache.gram.gram_error import GramErrors
from ..teacher_cache.origin import load_origin
from ..teacher_cache.reader import TeacherCache, TeacherRow
from ..teacher_cache.schema import CacheCard
from .build_options import library_versions
from .decode import Source, Square, View, read_squares
from .encode import look, on_grid
from .experts import DtypeName, Expert, dtype_name, load_asked
from .geometry import GeometryName
from .pixels import Alpha
from .weights import ExpertError, listed

ROWS = 16
"""How many rows are recomputed by default."""

_BATCH = 8  # not the build's: what another batch size rounds is within the tolerance
# Unit vectors at an angle of 0.008 have a cosine of 1 - 0.008 ** 2 / 2.
_FLOAT32 = Tolerance(cosine=1 - 0.008**2 / 2, gram=0.008, attention=0.01)
_BFLOAT16 = Tolerance(cosine=1 - 0.12**2 / 2, gram=0.08, attention=0.18)
_COMPUTING = {"float32": _FLOAT32}
_STORING = Tolerance(cosine=1 - 2.0**-23, gram=2.0**-10, attention=0.0)
_WAY_OUT = "give --images DIR, --weights PATH or --expert NAME, or do without with --recompute 0"


class CertificateError(ValueError):
    """Rows that cannot be recomputed: not this expert, or no image is there."""


class DriftError(RuntimeError):
    """Recomputed rows are not those that the cache holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """How to recompute rows; None stands for what the last build used.

    Attributes:
        rows: how many.
        seed: which ones.
        images: folder that image paths are relative to.
        expert: as `cache build --expert` takes it.
        weights: checkpoint file or folder.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: None for the one that the cache was computed in.
    """

    rows: int
    seed: int = 0
    images: Path | None = None
    expert: str | None = None
    weights: Path | None = None
    device: str = "auto"
    dtype: DtypeName | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the expert gives for one image now.

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


def recompute(
    cache: TeacherCache,
    images: Path,
    expert: Expert,
    *,
    rows: int = ROWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Certificate:
    """Recompute random rows exactly as a build does, and compare them with what is stored.

    The tolerance is that of the cache's own certificate, or `base_tolerance` where it has none;
    it is widened when this expert computes in a coarser dtype than either. Nothing is judged here:
    see `Certificate.outside`.

    Args:
        cache: complete; sealed or not.
        images: folder that manifest paths are relative to.
        expert: the one that the cache was built with, on any device, in any dtype.
        rows: how many, at most as many as hold data.
        seed: which ones.
        progress: advances with every row.

    Raises:
        CertificateError: another expert, or no image of the drawn rows is there.
        ExpertError: the expert gave NaN or infinity.
        TeacherCacheError: a row is damaged.
    """
    check_expert(cache, expert)
    drawn = _draw(cache, rows, seed)
    dtype = str(expert.dtype).removeprefix("torch.")
    tolerance = _tolerance(cache, dtype)
    skipped: list[Skipped] = []
    compared: list[tuple[int, str, Deviation]] = []
    progress = progress or NoProgress()
    with progress.stage("recomputing", total=len(drawn)):
        squares = _read_images(cache, images, expert, drawn, skipped)
        while batch := list(itertools.islice(squares, _BATCH)):
            for (row, path, _), now in zip(batch, _see(cache, expert, batch), strict=True):
                compared.append((row, path, compare(cache[row], now)))
            progress.advance(len(batch))
    if not compared:
        raise CertificateError(_nothing_to_compare(cache, images, skipped))
    worst_row, worst_path, _ = max(compared, key=lambda result: result[2].used(tolerance))
    return Certificate(
        rows=tuple(row for row, _, _ in compared),
        seed=seed,
        skipped=tuple(skipped),
        deviation=_worst([deviation for _, _, deviation in compared]),
        worst_row=worst_row,
        worst_path=worst_path,
        tolerance=tolerance,
        device=_device_name(expert.device),
        dtype=dtype,
        versions=library_versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def certifier(
    images: Path,
    expert: Expert,
    *,
    rows: int = ROWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Callable[[TeacherCache], Mapping[str, Any]]:
    """Return what `seal` calls for a certificate: it recomputes rows, and refuses drift.

    The function raises what `recompute` does, and DriftError when a row is outside the tolerance.
    """

    def certify(cache: TeacherCache) -> Mapping[str, Any]:
        certificate = recompute(cache, images, expert, rows=rows, seed=seed, progress=progress)
        refuse_drift(cache, certificate)
        return certificate.to_json()

    return certify


def refuse_drift(cache: TeacherCache, certificate: Certificate) -> None:
    """Refuse a cache whose rows are not what the expert gives.

    Raises:
        DriftError: names the worst row, its image, and every number that is outside.
    """
    if wrong := certificate.outside():
        raise DriftError(
            f"{cache.store}: row {certificate.worst_row} ({certificate.worst_path}) is not what "
            f"the expert gives for this image now: {'; '.join(wrong)}. Images are read, or the "
            "expert computes, in another way than when the cache was built, or its rows were "
            "altered; build it again into a new folder"
        )


def images_and_expert(cache: TeacherCache, recheck: Recheck) -> tuple[Path, Expert]:
    """Return the image folder of a cache and its expert, loaded and checked against the card.

    Raises:
        CertificateError: either is not there, or it is another expert; names options that help.
    """
    origin = load_origin(cache.store)
    images = recheck.images or (Path(origin.images) if origin else None)
    if images is None:
        raise CertificateError(f"{cache.store} does not say where its images are: {_WAY_OUT}")
    if not images.is_dir():
        raise CertificateError(f"{images}, where the images were, is no folder: {_WAY_OUT}")
    name, weights = recheck.expert, recheck.weights
    if name is None:
        name = origin.expert if origin else cache.card.expert.name
        weights = weights or (Path(origin.weights) if origin and origin.weights else None)
    card = cache.card
    try:
        expert = load_asked(
            name,
            weights,
            card.expert.features,
            recheck.device,
            recheck.dtype or dtype_name(card.dtype),
        )
    except ExpertError as error:
        raise CertificateError(f"{error}: {_WAY_OUT}") from error
    check_expert(cache, expert)
    return images, expert


def check_expert(cache: TeacherCache, expert: Expert) -> None:
    """Refuse an expert that is not the one a cache was built with; its name alone may differ.

    Raises:
        CertificateError: names both sides of every difference.
    """
    renamed = replace(expert.card, name=cache.card.expert.name)
    if differences := cache.card.differences(replace(cache.card, expert=renamed)):
        lines = "; ".join(line.replace("asked for", "in this expert") for line in differences)
        raise CertificateError(f"{cache.store} was built with another expert: {lines}")


def _draw(cache: TeacherCache, count: int, seed: int) -> list[int]:
    """Draw rows that hold data, without repeats."""
    order = np.random.default_rng(seed).permutation(cache.row_numbers()).tolist()
    drawn = list(itertools.islice((row for row in order if row in cache), count))
    if not drawn:
        raise CertificateError(
            f"{cache.store}: no image could be decoded, so there is nothing to recompute; "
            "--recompute 0 does without"
        )
    return drawn


def _read_images(
    cache: TeacherCache,
    images: Path,
    expert: Expert,
    rows: Sequence[int],
    skipped: list[Skipped],
) -> Iterator[tuple[int, str, Square]]:
    """Yield (row, path, square) of rows whose image is there; append the others to `skipped`."""
    card = cache.card
    view = View(
        root=images,
        geometry=cast(GeometryName, card.geometry),
        size=expert.card.image_size,
        fill=card.fill,
        alpha=cast(Alpha, card.alpha),
        grid=card.grid,
    )
    paths = cache.paths_of(rows)
    for row in rows:
        sources = [Source(path, cache.sha256_of(row)) for path in paths[row]]
        reasons = []
        for source in sources:  # all had the same bytes, so the first that can be read will do
            square = read_squares(view, [source])[0]
            if isinstance(square, Square):
                yield row, source.path, square
                break
            reasons.append(square.reason)
        else:
            reason = reasons[0] if reasons else "no path of the manifest leads to it any more"
            skipped.append(Skipped(row=row, path=sources[0].path if sources else "", reason=reason))


def _see(
    cache: TeacherCache, expert: Expert, batch: Sequence[tuple[int, str, Square]]
) -> Iterator[Seen]:
    squares = [square for _, _, square in batch]
    output = on_grid(look(expert, [square.rgb for square in squares]), cache.card)
    patches, attention = (tensor.cpu().numpy() for tensor in output)
    finite = np.isfinite(patches).all(axis=(1, 2)) & np.isfinite(attention).all(axis=1)
    if not finite.all():
        broken = [path for (_, path, _), good in zip(batch, finite, strict=True) if not good]
        raise ExpertError(f"the expert gave NaN or infinity for {listed(broken)}")
    for features, weights, square in zip(patches, attention, squares, strict=True):
        yield Seen(features, weights, square.valid, square.source_size)


def _nothing_to_compare(cache: TeacherCache, images: Path, skipped: Sequence[Skipped]) -> str:
    first = skipped[0]
    return (
        f"{cache.store}: none of the {len(skipped)} images drawn is there to be recomputed (the "
        f"first: {first.path} under {images}: {first.reason}); say where they are with --images "
        "DIR, or do without with --recompute 0"
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def compare(row: TeacherRow, now: Seen) -> Deviation:
    """Return how far a stored row is from what the expert gives now, over its image patches."""
    both = row.valid & now.valid
    other = []
    if different := int((row.valid != now.valid).sum()):
        other.append(f"{different} patches changed between image and padding")
    if row.source_size != now.source_size:
        before, after = ("x".join(map(str, size)) for size in (row.source_size, now.source_size))
        other.append(f"the image had {before} pixels and has {after}")
    gram = np.abs(row.gram() - now.gram())[np.ix_(both, both)]
    attention = np.abs(row.attention - now.attention)[both]
    largest = max(row.attention[both].max(initial=0), now.attention[both].max(initial=0), 1e-30)
    return Deviation(
        cosine=(_least_cosine(row.features[both], now.patches[both]) if row.code is None else None),
        gram=float(gram.max(initial=0)),
        attention=float(attention.max(initial=0)),
        attention_share=float(attention.max(initial=0) / largest),
        other=", ".join(other),
    )


def _least_cosine(stored: NDArray[np.float16], patches: NDArray[np.float32]) -> float:
    # In float64: near 1 a float32 would round the difference away.
    a, b = stored.astype(np.float64), patches.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.einsum("nb,nb->n", a, b) / np.maximum(lengths, 1e-30)
    return min(1.0, float(cosines.min(initial=1)))


def _worst(deviations: Sequence[Deviation]) -> Deviation:
    cosines = [deviation.cosine for deviation in deviations if deviation.cosine is not None]
    return Deviation(
        cosine=min(cosines) if cosines else None,
        gram=max(deviation.gram for deviation in deviations),
        attention=max(deviation.attention for deviation in deviations),
        attention_share=max(deviation.attention_share for deviation in deviations),
        other=next((deviation.other for deviation in deviations if deviation.other), ""),
    )


def _tolerance(cache: TeacherCache, dtype: str) -> Tolerance:
    recorded = read_certificate(cache.certificate)
    if recorded is None:
        return base_tolerance(cache.card, dtype, errors=cache.gram_errors)
    if dtype in (recorded.dtype, cache.card.dtype):
        return recorded.tolerance
    base = base_tolerance(cache.card, dtype, errors=cache.gram_errors)
    return recorded.tolerance.looser(base)


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
