"""Does this cache fit this student and this recipe? Both sides are named where it does not."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from ..pipeline.manifest import Record
from ..teacher_cache.reader import TeacherCache
from .recipe import Recipe
from .students.spec import StudentSpec


class AgreementError(ValueError):
    """Cache, student and recipe do not fit together."""


def check_agreement(recipe: Recipe, cache: TeacherCache | None, student: StudentSpec) -> None:
    """Refuse what would train on the wrong patches, before any weight is loaded.

    Raises:
        AgreementError: lists every disagreement, each with both sides and the way out.
    """
    wrong = disagreements(recipe, cache, student)
    if cache is None and (recipe.loss.alpha or recipe.loss.beta):
        wrong.append(
            "the recipe trains on a teacher (loss.alpha or loss.beta above 0): give --cache STORE"
        )
    if wrong:
        raise AgreementError("; ".join(wrong))


def disagreements(
    recipe: Recipe | None, cache: TeacherCache | None, student: StudentSpec | None
) -> list[str]:
    """List what does not fit among those that are given, each with both sides and the way out."""
    wrong = []
    if recipe is not None and student is not None:
        wrong += _layer(recipe, student)
    if cache is not None and student is not None:
        wrong += _geometry(cache, student)
    if cache is not None and recipe is not None:
        wrong += _expert(recipe, cache)
    return wrong


def _layer(recipe: Recipe, student: StudentSpec) -> list[str]:
    layer = recipe.loss.layer
    if layer < student.layers:
        return []
    return [
        f"loss.layer is {layer}, the student {student.path} has layers 0 to {student.layers - 1}"
    ]


def _geometry(cache: TeacherCache, student: StudentSpec) -> list[str]:
    card, wrong = cache.card, list[str]()
    if student.sight.fixed_grid is None:
        return wrong  # rows are resampled to each image's own grid
    if card.grid != student.grid:
        wrong.append(
            f"the cache {cache.store} has {card.grid} patches, the student {student.path} sees "
            f"{student.grid}; build the cache with --grid {student.grid}"
        )
    if card.mode == "aligned" and card.geometry != student.geometry:
        wrong.append(
            f"the cache {cache.store} was built with geometry {card.geometry!r}, the student "
            f"{student.path} uses {student.geometry!r}; build the cache with "
            f"--geometry {student.geometry}"
        )
    return wrong


def _expert(recipe: Recipe, cache: TeacherCache) -> list[str]:
    card = cache.card
    sides = (
        ("expert.name", recipe.expert.name, card.expert.name),
        ("expert.features", recipe.expert.features, card.expert.features),
        ("expert.mode", recipe.expert.mode, card.mode),
    )
    return [
        f"the recipe wants {key} {wanted!r}, the cache {cache.store} holds {found!r}"
        for key, wanted, found in sides
        if wanted is not None and wanted != found
    ]


def cache_identity(cache: TeacherCache | None) -> dict[str, str | None]:
    """What a run remembers of its cache; a resumed run must find the same."""
    if cache is None:
        return {"cache": None}
    return {"cache": cache.fingerprint, "cache_content": cache.content_hash}


def records_digest(records: Iterable[Record]) -> str:
    """SHA-256 over ids, image names and words of conversations, in order."""
    digest = hashlib.sha256()
    for record in records:
        turns = [(turn.role, turn.text) for turn in record.conversations]
        digest.update(json.dumps([record.id, record.images, turns]).encode())
    return digest.hexdigest()


def absolute(path: str | Path) -> str:
    """A path that stays true when a run is resumed from another folder."""
    return str(Path(path).expanduser().resolve())
