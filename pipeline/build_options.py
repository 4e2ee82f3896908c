"""How a cache is built, and the card that records it."""

from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from ..runtime.parts import Part
from ..runtime.processes import default_workers
from ..teacher_cache.schema import (
    MAX_GRAM_ERROR,
    MIN_GRAM_ERROR,
    CacheCard,
    CacheMode,
    FeatureChoice,
    PatchGrid,
)
from .experts import Expert
from .geometry import GeometryName, mean_colour
from .pixels import Alpha
from .planning import BuildError
from .resample import INTERPOLATION

STUDENT_GRID = PatchGrid(24, 24)
"""The patch grid of LLaVA's students: 336 px in 14 px patches."""

_RECORDED = ("medalign", "torch", "open_clip_torch", "timm", "numpy", "pillow", "zarr")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How a cache is built.

    Attributes:
        grid: the student's patch grid.
        geometry: the student's, from source pixels to its square.
        mode: `aligned` shows the expert the student's square and marks padding; `paper` crops
            the expert's input whatever the student does, and counts every patch.
        alpha: colour behind transparent pixels.
        shard_rows: S, rows per shard: the unit of writing and resuming.
        batch_size: most images in one pass of the expert.
        workers: processes that decode; 0 decodes in this process.
        part: which share of the shards to build.
        max_gram_error: store similarities of patches in compact form, with at most this RMS
            error in an image, instead of features; None stores features.
        on_error: `skip` lists unreadable images, `fail` stops at the first.
        rehash: read every image of the store again, to find those whose bytes changed.
        retry: try images again that could not be decoded, now that a decoder is installed.
    """

    grid: PatchGrid = STUDENT_GRID
    geometry: GeometryName = "pad"
    mode: CacheMode = "aligned"
    alpha: Alpha = "black"
    shard_rows: int = 64
    batch_size: int = 32
    workers: int = field(default_factory=default_workers)
    part: Part = field(default_factory=Part)
    max_gram_error: float | None = None
    on_error: Literal["skip", "fail"] = "skip"
    rehash: bool = False
    retry: bool = False

    def __post_init__(self) -> None:
        for name, least in (("shard_rows", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise BuildError(f"{name} takes a number from {least}, got {getattr(self, name)}")
        error = self.max_gram_error
        if error is not None and not MIN_GRAM_ERROR <= error <= MAX_GRAM_ERROR:  # NaN is outside
            raise BuildError(
                f"--max-gram-error takes {MIN_GRAM_ERROR:g} to {MAX_GRAM_ERROR:g}, got {error:g}"
            )

    @property
    def expert_geometry(self) -> GeometryName:
        """How the expert's input is made: the authors' expert crops, whatever the student does.

        A cropped square has no padding, so in mode `paper` every patch is valid.
        """
        return "crop" if self.mode == "paper" else self.geometry


def make_card(expert: Expert, options: BuildOptions) -> CacheCard:
    """Return the card of a cache that `expert` would fill with `options`."""
    return CacheCard(
        expert=expert.card,
        fill=mean_colour(),
        dtype=str(expert.dtype).removeprefix("torch."),
        interpolation=INTERPOLATION,
        versions=library_versions(),
        **_chosen(options),
    )


def with_options(card: CacheCard, options: BuildOptions, features: FeatureChoice) -> CacheCard:
    """Return what the card of a store would be if its expert had filled it with `options`."""
    expert = replace(card.expert, features=features)
    return replace(card, expert=expert, **_chosen(options))


def _chosen(options: BuildOptions) -> dict[str, Any]:
    return {
        "grid": options.grid,
        "geometry": options.expert_geometry,
        "mode": options.mode,
        "alpha": options.alpha,
        "codec": "fp16" if options.max_gram_error is None else "gram",
        "max_gram_error": options.max_gram_error,
        "shard_rows": options.shard_rows,
    }


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that take part in what a cache holds."""
    return {name: _version(name) for name in _RECORDED}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
