"""Fixtures that more than one folder of tests uses."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from medalign.teacher_cache.audit import seal
from medalign.teacher_cache.schema import CacheCard, ExpertCard, Failure, PatchGrid, Plan
from medalign.teacher_cache.writer import TeacherCacheWriter

# Time limits belong to benchmarks; a loaded machine must not fail a law.
settings.register_profile("medalign", deadline=None)
settings.load_profile("medalign")


def _card(grid: PatchGrid, width: int, shard_rows: int) -> CacheCard:
    expert = ExpertCard(
        name="synthetic",
        architecture="none",
        weights_sha256=hashlib.sha256(b"synthetic").hexdigest(),
        features="last",
        grid=grid,
        width=width,
        image_size=14 * grid.rows,
        normalise_before_interpolation=True,
        licence="CC0-1.0",
    )
    return CacheCard(
        expert=expert,
        grid=grid,
        geometry="pad",
        mode="aligned",
        fill=(122, 116, 104),
        alpha="black",
        dtype="float32",
        interpolation="bilinear, align_corners=False",
        codec="fp16",
        shard_rows=shard_rows,
        versions={"medalign": "0"},
    )


def _rows(card: CacheCard, rows: range, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Unit rows and softmax attention; a row's values depend on its number and the seed only."""
    features, attention = [], []
    for row in rows:
        rng = np.random.default_rng([seed, row])
        patches = rng.standard_normal((card.grid.size, card.expert.width))
        features.append(patches / np.linalg.norm(patches, axis=-1, keepdims=True))
        scores = np.exp(rng.standard_normal(card.grid.size))
        attention.append(scores / scores.sum())
    return {
        "features": np.stack(features).astype(np.float16),
        "attention": np.stack(attention).astype(np.float32),
        "valid": np.ones((len(rows), card.grid.size), np.bool_),
        "source_size": np.array([[100 + row, 200] for row in rows], np.int32),
    }


@pytest.fixture(scope="session")
def synthetic_card() -> Callable[..., CacheCard]:
    """Make a card: `synthetic_card(grid="4x4", width=8, shard_rows=4, geometry="crop", ...)`."""

    def make(grid: str = "4x4", width: int = 8, shard_rows: int = 4, **changes: Any) -> CacheCard:
        return replace(_card(PatchGrid.parse(grid), width, shard_rows), **changes)

    return make


@pytest.fixture(scope="session")
def synthetic_rows() -> Callable[..., dict[str, npt.NDArray[Any]]]:
    """Make what `write` takes: `synthetic_rows(card, range(4, 8), seed=0)`."""

    def make(card: CacheCard, rows: range, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
        return _rows(card, rows, seed)

    return make


@pytest.fixture
def synthetic_store(
    tmp_path: Path, synthetic_card: Callable[..., CacheCard]
) -> Callable[..., Path]:
    """Make a sealed store without any expert, and return its path.

    `synthetic_store(rows=6, grid="4x4", width=8, paths=None, content=None, sealed=True,
    name="cache", seed=0, failures=None, unreadable=(), **card)`: `paths` and `content` (SHA-256,
    hex) hold one entry per row, `failures` maps rows to reasons, `unreadable` lists paths without
    a row, and `card` changes fields of the card (`shard_rows`, `geometry`, `mode`, ...).
    """

    def make(
        rows: int = 6,
        grid: str = "4x4",
        width: int = 8,
        paths: Sequence[str] | None = None,
        *,
        content: Sequence[str] | None = None,
        sealed: bool = True,
        name: str = "cache",
        seed: int = 0,
        failures: dict[int, str] | None = None,
        unreadable: Sequence[str] = (),
        **card: Any,
    ) -> Path:
        made = synthetic_card(grid, width, **card)
        named = paths or [f"images/{row}.png" for row in range(rows)]
        digests = content or [hashlib.sha256(repr(path).encode()).hexdigest() for path in named]
        plan = Plan(
            content=tuple(digests),
            paths=dict(zip(named, range(rows), strict=True)),
            failures=tuple(Failure(path, "not an image") for path in unreadable),
        )
        writer = TeacherCacheWriter.begin(tmp_path / name, made, plan)
        for shard in writer.pending():
            span = writer.rows_of(shard)
            lost = {row: why for row, why in (failures or {}).items() if row in span}
            writer.write(shard, **_rows(made, span, seed), failures=lost)
        if sealed:
            seal(tmp_path / name)
        return tmp_path / name

    return make
