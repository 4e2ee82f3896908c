"""Before anything heavy is loaded: do recipe, student, cache, manifest and images fit together?"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..pipeline.manifest import checked_records
from ..teacher_cache.certificate import read_certificate
from ..teacher_cache.reader import TeacherCache
from .agreement import absolute, check_agreement
from .data import Selection, select
from .recipe import Recipe, RecipeError
from .students.spec import StudentSpec, read_student

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run whose parts fit together; nothing heavy is loaded yet.

    Attributes:
        recipe: complete, with the paths that the command line gave.
        student: what the student's folder says.
        cache: the sealed teacher cache, or None for plain LoRA.
        selection: records to train on.
        images: folder of the images.
        steps: updates of the whole run.
    """

    recipe: Recipe
    student: StudentSpec
    cache: TeacherCache | None
    selection: Selection
    images: Path
    steps: int


def prepare(recipe: Recipe, cache: Path | str | None, world: int) -> Prepared:
    """Check recipe, student, cache, manifest and images against each other.

    Raises:
        ValueError: of the part that is wrong; `RecipeError`, `StudentError`, `AgreementError`,
            `TeacherCacheError`, `ManifestError` and `MissingTeacherError` name it.
    """
    student = read_student(_given(recipe.student.path, "student"), recipe.student.geometry)
    manifest = _given(recipe.data.manifest, "manifest")
    images = _given(recipe.data.images, "images")
    if not images.is_dir():
        raise RecipeError(f"--images {images} is no folder")
    opened = None if cache is None else _open(cache, recipe)
    check_agreement(recipe, opened, student)
    _check_precision(recipe)
    selection = select(checked_records(manifest), opened, recipe.data.on_missing)
    per_step = recipe.data.batch_size * recipe.data.accumulation * world
    steps = recipe.run.steps
    if steps is None:
        assert recipe.run.epochs is not None
        steps = math.ceil(recipe.run.epochs * len(selection.records) / per_step)
    return Prepared(
        recipe=recipe,
        student=student,
        cache=opened,
        selection=selection,
        images=images,
        steps=steps,
    )


def describe(plan: Prepared, say: Say) -> None:
    """Tell a user what will be trained on what."""
    chosen = plan.selection
    student = plan.student
    say(f"student  {student.path}: {student.grid} visual tokens, {student.layers} layers")
    if plan.cache is not None:
        card = plan.cache.card
        say(
            f"cache    {plan.cache.store}: {len(plan.cache)} images of {card.expert.name}, "
            f"{card.grid}, geometry {card.geometry}, mode {card.mode}"
        )
        found = read_certificate(plan.cache.certificate)
        none = "no certificate: no rows were recomputed when it was sealed"
        say(f"         {none if found is None else found.summary()}")
    say(
        f"records  {len(chosen.records)} to train on: {chosen.text_only} text only, "
        f"{chosen.without_teacher} without a teacher; {chosen.dropped} dropped"
    )
    for reason, images in chosen.reasons.most_common(5):
        say(f"         {images} images have no teacher: {reason}")
    say(f"steps    {plan.steps}")


def uses_bf16(recipe: Recipe) -> bool:
    """Whether a run computes in bfloat16 here."""
    wanted = recipe.student.dtype
    return wanted == "bf16" or (wanted == "auto" and torch.cuda.is_available())


def with_paths(
    recipe: Recipe, *, student: Path | None, manifest: Path | None, images: Path | None
) -> Recipe:
    """Fill in the paths that the command line gives, and make all of them absolute."""
    return recipe.model_copy(
        update={
            "student": recipe.student.model_copy(
                update={"path": _pick(student, recipe.student.path)}
            ),
            "data": recipe.data.model_copy(
                update={
                    "manifest": _pick(manifest, recipe.data.manifest),
                    "images": _pick(images, recipe.data.images),
                }
            ),
        }
    )


def _pick(given: Path | None, written: str | None) -> str | None:
    chosen = written if given is None else str(given)
    return None if chosen is None else absolute(chosen)


def _open(cache: Path | str, recipe: Recipe) -> TeacherCache:
    folder = recipe.data.cache_folder or os.environ.get("MEDALIGN_CACHE_FOLDER")
    return TeacherCache.open(cache, nearby=folder, nearby_bytes=int(recipe.data.cache_gb * 1e9))


def _given(path: str | None, name: str) -> Path:
    if path is None:
        raise RecipeError(f"the recipe names no {name}: give --{name}")
    return Path(path)


def _check_precision(recipe: Recipe) -> None:
    if recipe.deepspeed.stage == 0 and uses_bf16(recipe):
        # DeepSpeed's bf16 wrapper of stage 0 steps Adam once on zeros before training.
        raise RecipeError(
            "bf16 (student.dtype, auto on a GPU) needs deepspeed.stage 1 or 2, got 0; or set "
            "student.dtype: fp32"
        )
