"""Recompute some rows of a cache with the expert, and judge what the cache holds by that.

A digest says that bytes are as they were written; only the expert can say that they were right.
How far apart the two may be is in `drift`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..teacher_cache.certificate import Certificate, Deviation, Skipped, Tolerance, read_certificate
from ..teacher_cache.reader import TeacherCache
from .drift import Seen, base_tolerance, compare, refuse_drift
from .encode import look
from .experts import Expert, ExpertError
from .geometry import GeometryName
from .options import library_versions
from .pixels import Alpha
from .progress import NoProgress, Progress
from .row_form import on_grid
from .squares import Source, Square, View, read_squares
from .weights import listed

ROWS = 16
"""How many rows are recomputed unless said otherwise."""

_BATCH = 8


class CertificateError(ValueError):
    """Rows that cannot be recomputed: not this expert, or no image is there."""


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
        progress: told of every row.

    Raises:
        CertificateError: another expert, or not one image of the drawn rows is there.
        ExpertError: the expert gave NaN or infinity.
        TeacherCacheError: a row is damaged.
    """
    check_expert(cache, expert)
    drawn = _draw(cache, rows, seed)
    tolerance = _tolerance(cache, str(expert.dtype).removeprefix("torch."))
    skipped: list[Skipped] = []
    compared: list[tuple[int, str, Deviation]] = []
    progress = progress or NoProgress()
    with progress.stage("recomputing", total=len(drawn)):
        found = _find(cache, images, expert, drawn, skipped)
        while batch := list(itertools.islice(found, _BATCH)):
            for (row, path, _), seen in zip(batch, _see(cache, expert, batch), strict=True):
                compared.append((row, path, compare(cache[row], seen)))
            progress.advance(len(batch))
    if not compared:
        raise CertificateError(_nothing_to_compare(cache, images, skipped))
    worst = max(compared, key=lambda each: each[2].used(tolerance))
    return Certificate(
        rows=tuple(row for row, _, _ in compared),
        seed=seed,
        skipped=tuple(skipped),
        deviation=_worst([deviation for _, _, deviation in compared]),
        worst_row=worst[0],
        worst_path=worst[1],
        tolerance=tolerance,
        device=_device_name(expert.device),
        dtype=str(expert.dtype).removeprefix("torch."),
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
        found = recompute(cache, images, expert, rows=rows, seed=seed, progress=progress)
        refuse_drift(cache, found)
        return found.to_json()

    return certify


def check_expert(cache: TeacherCache, expert: Expert) -> None:
    """Refuse an expert that is not the one a cache was built with; its name alone may differ.

    Raises:
        CertificateError: names both sides of every difference.
    """
    named = dataclasses.replace(expert.card, name=cache.card.expert.name)
    theirs = dataclasses.replace(cache.card, expert=named)
    wrong = cache.card.differences(theirs)
    if wrong:
        listed_ = "; ".join(each.replace("asked for", "in the expert given") for each in wrong)
        raise CertificateError(f"{cache.store} was built with another expert: {listed_}")


def _worst(deviations: Sequence[Deviation]) -> Deviation:
    cosines = [each.cosine for each in deviations if each.cosine is not None]
    return Deviation(
        cosine=min(cosines) if cosines else None,
        gram=max(each.gram for each in deviations),
        attention=max(each.attention for each in deviations),
        attention_share=max(each.attention_share for each in deviations),
        other=next((each.other for each in deviations if each.other), ""),
    )


def _tolerance(cache: TeacherCache, dtype: str) -> Tolerance:
    recorded = read_certificate(cache.certificate)
    if recorded is None:
        return base_tolerance(cache.card, dtype, errors=cache.gram_errors)
    if dtype in (recorded.dtype, cache.card.dtype):
        return recorded.tolerance
    base = base_tolerance(cache.card, dtype, errors=cache.gram_errors)
    return recorded.tolerance.looser(base)


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


def _find(
    cache: TeacherCache,
    images: Path,
    expert: Expert,
    rows: Sequence[int],
    skipped: list[Skipped],
) -> Iterator[tuple[int, str, Square]]:
    """Yield (row, path, square) of rows whose image is there; put the others into `skipped`."""
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
        for source in sources:  # all hold one content, so any that is still there will do
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
    found = on_grid(look(expert, [square.rgb for square in squares]), cache.card)
    patches, attention = (each.cpu().numpy() for each in found)
    finite = np.isfinite(patches).all(axis=(1, 2)) & np.isfinite(attention).all(axis=1)
    if not finite.all():
        broken = [path for (_, path, _), good in zip(batch, finite, strict=True) if not good]
        raise ExpertError(f"the expert gave NaN or infinity for {listed(broken)}")
    for one, weights, square in zip(patches, attention, squares, strict=True):
        yield Seen(one, weights, square.valid, square.source_size)


def _nothing_to_compare(cache: TeacherCache, images: Path, skipped: Sequence[Skipped]) -> str:
    first = skipped[0]
    return (
        f"{cache.store}: none of the {len(skipped)} images drawn is there to be recomputed (the "
        f"first: {first.path} under {images}: {first.reason}); say where they are with --images "
        "DIR, or do without with --recompute 0"
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
