"""Before anything heavy is loaded: do recipe, student, cache, manifest and images fit together?"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..pipeline.manifest import checked_records, resolve_image
from ..teacher_cache.certificate import read_certificate
from ..teacher_cache.reader import TeacherCache
from .data.dataset import PackedRecords, Selection, select
from .data.order import choose
from .derived import Derived, derive
from .preflight.student_check import refuse_unfit
from .recipe.recipe import Recipe, RecipeError, for_ranks
from .run.loggers import check_installed
from .students.spec import StudentSpec, read_student

Say = Callable[[str], None]

_SAMPLED: Final = 32
"""Records, evenly spread, whose images are looked for before a run."""
_REASONS: Final = 5
"""Most frequent reasons that are printed for images without a teacher."""


class AgreementError(ValueError):
    """Cache, student and recipe do not fit together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run whose parts fit together; nothing heavy is loaded yet.

    Attributes:
        recipe: complete, with the paths of the command line and the accumulation of these ranks.
        derived: precision, attention kernel, ZeRO stage and what else follows from it here.
        student: what the student's folder holds.
        cache: the sealed teacher cache, or None for plain LoRA.
        selection: records to train on.
        images: folder of the images.
        steps: updates of the whole run.
        held_out: records to validate on, or None.
        held_out_images: folder of their images.
    """

    recipe: Recipe
    derived: Derived
    student: StudentSpec
    cache: TeacherCache | None
    selection: Selection
    images: Path
    steps: int
    held_out: Selection | None = None
    held_out_images: Path = Path()


def with_paths(
    recipe: Recipe, *, student: Path | None, manifest: Path | None, images: Path | None
) -> Recipe:
    """Fill in the paths that the command line gives, and make all of them absolute."""
    data, validation = recipe.data, recipe.validation
    paths: dict[str, dict[str, Path | str | None]] = {
        "student": {"path": student or recipe.student.path},
        "data": {"manifest": manifest or data.manifest, "images": images or data.images},
        "validation": {"manifest": validation.manifest, "images": validation.images},
    }
    return recipe.model_copy(
        update={
            name: getattr(recipe, name).model_copy(
                update={key: _absolute(path) for key, path in keys.items()}
            )
            for name, keys in paths.items()
        }
    )


def prepare(
    recipe: Recipe, cache: Path | str | None, world: int, *, keep_rows: bool = True
) -> Prepared:
    """Check recipe, student, cache, manifest and images against each other.

    Called once in every process of a run; everything after it reads the result.

    Args:
        recipe: with `student.path`, `data.manifest` and `data.images` filled in.
        cache: sealed store, or None when alpha and beta are 0.
        world: ranks.
        keep_rows: rows of a cache behind a URL may be kept in the folder that is set for them.

    Raises:
        ValueError: of the part that is wrong; `RecipeError`, `StudentError`, `AgreementError`,
            `TeacherCacheError`, `ManifestError` and `MissingTeacherError` name it.
    """
    recipe = for_ranks(recipe, world)
    student = read_student(_required(recipe.student.path, "student"), recipe.student.geometry)
    manifest = _required(recipe.data.manifest, "manifest")
    images = _required(recipe.data.images, "images")
    held_out_images = Path(recipe.validation.images or images)
    for folder in (images, held_out_images):
        if not folder.is_dir():
            raise RecipeError(f"--images {folder} is no folder")
    check_installed(recipe.log)
    refuse_unfit(student)
    opened = None if cache is None else _open(cache, recipe, keep_rows)
    _check_agreement(recipe, opened, student)
    # DeepSpeed's file is refused here, not after minutes of loading.
    derived = derive(recipe, world, student.family)
    selection = select(checked_records(manifest), opened, recipe.data.on_missing)
    _check_folder(selection, images)
    return Prepared(
        recipe=recipe,
        derived=derived,
        student=student,
        cache=opened,
        selection=selection,
        images=images,
        steps=_steps(recipe, len(selection.records), derived.per_step),
        held_out=_held_out(opened, recipe),
        held_out_images=held_out_images,
    )


def disagreements(
    recipe: Recipe | None, cache: TeacherCache | None, student: StudentSpec | None
) -> list[str]:
    """List what does not fit among those that are given, each with both sides and the way out."""
    wrong = []
    if recipe is not None and student is not None and recipe.loss.layer >= student.layers:
        wrong.append(
            f"loss.layer is {recipe.loss.layer}, the student {student.path} has layers 0 to "
            f"{student.layers - 1}"
        )
    if cache is not None and student is not None:
        wrong += _geometry(cache, student)
    if cache is not None and recipe is not None:
        wrong += _expert(recipe, cache)
    return wrong


def describe(plan: Prepared, say: Say) -> None:
    """Print what will be trained on what."""
    student, selection = plan.student, plan.selection
    say(f"student  {student.path}: {student.sight}, {student.layers} layers")
    if plan.cache is not None:
        card = plan.cache.card
        say(
            f"cache    {plan.cache.store}: {len(plan.cache)} images of {card.expert.name}, "
            f"{card.grid}, geometry {card.geometry}, mode {card.mode}"
        )
        certificate = read_certificate(plan.cache.certificate)
        none = "no certificate: no rows were recomputed when it was sealed"
        say(f"         {none if certificate is None else certificate.summary()}")
    say(
        f"records  {len(selection.records)} to train on: {selection.text_only} text only, "
        f"{selection.without_teacher} without a teacher; {selection.dropped} dropped"
    )
    _describe_reasons(selection, say)
    if plan.held_out is not None:
        _describe_held_out(plan, plan.held_out, say)
    say(f"steps    {plan.steps}")


def _absolute(path: Path | str | None) -> str | None:
    """A path that stays true when a run is resumed from another folder."""
    return None if path is None else str(Path(path).expanduser().resolve())


def _required(path: str | None, name: str) -> Path:
    if path is None:
        raise RecipeError(f"the recipe names no {name}: give --{name}")
    return Path(path)


def _open(cache: Path | str, recipe: Recipe, keep_rows: bool) -> TeacherCache:
    if not keep_rows:
        return TeacherCache.open(cache)
    folder = recipe.data.cache_folder or os.environ.get("MEDALIGN_CACHE_FOLDER")
    return TeacherCache.open(cache, nearby=folder, nearby_bytes=int(recipe.data.cache_gb * 1e9))


def _check_agreement(recipe: Recipe, cache: TeacherCache | None, student: StudentSpec) -> None:
    """Refuse what would train on the wrong patches, before any weight is loaded."""
    wrong = disagreements(recipe, cache, student)
    if cache is None and (recipe.loss.alpha or recipe.loss.beta):
        wrong.append(
            "the recipe trains on a teacher (loss.alpha or loss.beta above 0): give --cache STORE"
        )
    if wrong:
        raise AgreementError("; ".join(wrong))


def _geometry(cache: TeacherCache, student: StudentSpec) -> Iterator[str]:
    card = cache.card
    if student.sight.fixed_grid is None:
        return  # rows are resampled to each image's own grid
    if card.grid != student.grid:
        yield (
            f"the cache {cache.store} has {card.grid} patches, the student {student.path} sees "
            f"{student.grid}; build the cache with --grid {student.grid}"
        )
    # In mode paper the expert saw a centre crop whatever the student sees, as the authors' did.
    if card.mode == "aligned" and card.geometry != student.geometry:
        yield (
            f"the cache {cache.store} was built with geometry {card.geometry!r}, the student "
            f"{student.path} uses {student.geometry!r}; build the cache with "
            f"--geometry {student.geometry}"
        )


def _expert(recipe: Recipe, cache: TeacherCache) -> list[str]:
    expert, card = recipe.expert, cache.card
    sides = (
        ("expert.name", expert.name, card.expert.name),
        ("expert.features", expert.features, card.expert.features),
        ("expert.mode", expert.mode, card.mode),
    )
    return [
        f"the recipe wants {key} {expected!r}, the cache {cache.store} holds {actual!r}"
        for key, expected, actual in sides
        if expected is not None and expected != actual
    ]


def _check_folder(selection: Selection, images: Path) -> None:
    """Refuse a folder that holds none of the images that are looked at, before anything is loaded.

    Some may be missing: a conversation without its image is skipped and counted.
    """
    records = selection.records
    stride = max(1, len(records) // _SAMPLED)
    paths = [path for k in range(0, len(records), stride) for path in records[k].images]
    if paths and not any(resolve_image(images, path).exists() for path in paths):
        raise RecipeError(
            f"none of {len(paths)} images that were looked for is under {images} (the first: "
            f"{paths[0]}); --images must be the folder that the manifest's paths start from"
        )


def _steps(recipe: Recipe, records: int, per_step: int) -> int:
    if recipe.run.steps is not None:
        return recipe.run.steps
    assert recipe.run.epochs is not None
    return math.ceil(recipe.run.epochs * records / per_step)


def _held_out(cache: TeacherCache | None, recipe: Recipe) -> Selection | None:
    """Records to validate on; those that the cache lacks are handled as in training."""
    validation = recipe.validation
    if validation.manifest is None:
        return None
    if cache is None and validation.keep_best in ("vis", "att"):
        raise RecipeError(
            f"validation.keep_best is {validation.keep_best}, which is not measured without --cache"
        )
    try:
        manifest = Path(validation.manifest)
        selection = select(checked_records(manifest), cache, recipe.data.on_missing)
    except ValueError as error:
        raise RecipeError(f"validation.manifest: {error}") from error
    numbers = choose(len(selection.records), validation.samples)
    return replace(selection, records=PackedRecords(selection.records[k] for k in numbers))


def _describe_held_out(plan: Prepared, held_out: Selection, say: Say) -> None:
    say(
        f"held out {len(held_out.records)} to validate on every {plan.recipe.validation.every} "
        f"steps; {held_out.without_teacher} without a teacher; {held_out.dropped} dropped"
    )
    _describe_reasons(held_out, say)
    if plan.held_out_images == plan.images:
        paths = {path for record in held_out.records for path in record.images}
        trained = (path for record in plan.selection.records for path in record.images)
        leaked = {path for path in trained if path in paths}
        shared = sum(bool(leaked.intersection(record.images)) for record in held_out.records)
        if shared:
            say(f"         {shared} of them show an image that is also trained on")


def _describe_reasons(selection: Selection, say: Say) -> None:
    for reason, images in selection.reasons.most_common(_REASONS):
        say(f"         {images} images have no teacher: {reason}")
