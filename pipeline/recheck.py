"""Find again what a store was built from, so that its rows can be recomputed."""

from dataclasses import dataclass
from pathlib import Path

from ..teacher_cache.origin import load_origin
from ..teacher_cache.reader import TeacherCache
from .asked_expert import DtypeName, dtype_name, load_asked
from .certificate import CertificateError, check_expert
from .experts import Expert, ExpertError

_WAY_OUT = "give --images DIR, --weights PATH or --expert NAME, or do without with --recompute 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """How rows are to be recomputed; None stands for what the last build went by.

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


def images_and_expert(cache: TeacherCache, asked: Recheck) -> tuple[Path, Expert]:
    """Return the image folder of a cache and its expert, loaded and checked against the card.

    Raises:
        CertificateError: either is not there, or it is another expert; says which options help.
    """
    origin = load_origin(cache.store)
    images = asked.images or (Path(origin.images) if origin else None)
    if images is None:
        raise CertificateError(f"{cache.store} does not say where its images are: {_WAY_OUT}")
    if not images.is_dir():
        raise CertificateError(f"{images}, where the images were, is no folder: {_WAY_OUT}")
    name, weights = asked.expert, asked.weights
    if name is None:
        name = origin.expert if origin else cache.card.expert.name
        weights = weights or (Path(origin.weights) if origin and origin.weights else None)
    card = cache.card
    try:
        expert = load_asked(
            name, weights, card.expert.features, asked.device, asked.dtype or dtype_name(card.dtype)
        )
    except ExpertError as error:
        raise CertificateError(f"{error}: {_WAY_OUT}") from error
    check_expert(cache, expert)
    return images, expert
