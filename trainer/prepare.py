"""Before anything heavy is loaded: do recipe, student, cache, manifest and images fit together?"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from ..pipeline.manifest import checked_records, resolve_image
from ..teacher_cache.certificate import read_certificate
from ..teacher_cache.reader import TeacherCache
from .agreement import absolute, check_agreement
from .data import Selection, select
from .held_out import choose
from .loggers import check_installed
from .packed import PackedRecords
from .per_step import for_ranks
from .recipe import Recipe, RecipeError
from .students.families import FAMILIES
from .students.spec import StudentSpec, read_config, read_student
from .zero_config import zero_config, zero_stage

Say = Callable[[str], None]

_LOOKED_AT: Final = 32
"""Records, evenly spread, whose images are looked for before a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run whose parts fit together; nothing heavy is loaded yet.

    Attributes:
        recipe: complete, with the paths of the command line and the accumulation of these ranks.
        student: what the student's folder says.
        cache: the sealed teacher cache, or None for plain LoRA.
        selection: records to train on.
        images: folder of the images.
        steps: updates of the whole run.
        held_out: records to validate on, or None.
        held_out_images: folder of their images.
    """

    recipe: Recipe
    student: StudentSpec
    cache: TeacherCache | None
    selection: Selection
    images: Path
    steps: int
    held_out: Selection | None = None
    held_out_images: Path = Path()


def prepare(
    recipe: Recipe, cache: Path | str | None, world: int, *, keep_rows: bool = True
) -> Prepared:
    """Check recipe, student, cache, manifest and images against each other.

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
    student = read_student(_given(recipe.student.path, "student"), recipe.student.geometry)
    manifest = _given(recipe.data.manifest, "manifest")
    images = _given(recipe.data.images, "images")
    held_out_images = Path(recipe.validation.images or images)
    for folder in (images, held_out_images):
        if not folder.is_dir():
            raise RecipeError(f"--images {folder} is no folder")
    check_installed(recipe.log)
    opened = None if cache is None else _open(cache, recipe, keep_rows)
    check_agreement(recipe, opened, student)
    check_precision(recipe)
    zero_config(recipe, bf16=uses_bf16(recipe), world=world)  # refused now, not after loading
    selection = select(checked_records(manifest), opened, recipe.data.on_missing)
    _check_folder(selection, images)
    per_step = recipe.data.batch_size * recipe.data.micro_steps * world
    steps = recipe.run.steps
    if steps is None:
        assert recipe.run.epochs is not None
        steps = math.ceil(recipe.run.epochs * len(selection.records) / per_step)
    held_out = None
    if recipe.validation.manifest is not None:
        held_out = _held_out(Path(recipe.validation.manifest), opened, recipe)
    return Prepared(
        recipe=recipe,
        student=student,
        cache=opened,
        selection=selection,
        images=images,
        steps=steps,
        held_out=held_out,
        held_out_images=held_out_images,
    )


def _check_folder(selection: Selection, images: Path) -> None:
    """Refuse a folder that holds none of the images that are looked at, before anything is loaded.

    Some may be missing: a conversation without its image is skipped and counted.
    """
    records = selection.records
    stride = max(1, len(records) // _LOOKED_AT)
    paths = [path for k in range(0, len(records), stride) for path in records[k].images]
    if paths and not any(resolve_image(images, path).exists() for path in paths):
        raise RecipeError(
            f"none of {len(paths)} images that were looked for is under {images} (the first: "
            f"{paths[0]}); --images must be the folder that the manifest's paths start from"
        )


def _held_out(manifest: Path, cache: TeacherCache | None, recipe: Recipe) -> Selection:
    """Records to validate on; those that the cache lacks are handled as in training."""
    by = recipe.validation.keep_best
    if cache is None and by in ("vis", "att"):
        raise RecipeError(f"validation.keep_best is {by}, which is not measured without --cache")
    try:
        found = select(checked_records(manifest), cache, recipe.data.on_missing)
    except ValueError as error:
        raise RecipeError(f"validation.manifest: {error}") from error
    kept = choose(len(found.records), recipe.validation.samples)
    return replace(found, records=PackedRecords(found.records[k] for k in kept))


def describe(plan: Prepared, say: Say) -> None:
    """Tell a user what will be trained on what."""
    chosen = plan.selection
    student = plan.student
    say(f"student  {student.path}: {student.sight}, {student.layers} layers")
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
    if plan.held_out is not None:
        _describe_held_out(plan, plan.held_out, say)
    say(f"steps    {plan.steps}")


def _describe_held_out(plan: Prepared, held_out: Selection, say: Say) -> None:
    validation = plan.recipe.validation
    say(
        f"held out {len(held_out.records)} to validate on every {validation.every} steps; "
        f"{held_out.without_teacher} without a teacher; {held_out.dropped} dropped"
    )
    for reason, images in held_out.reasons.most_common(5):
        say(f"         {images} images have no teacher: {reason}")
    if plan.held_out_images == plan.images:
        shown = {path for record in held_out.records for path in record.images}
        trained = (path for record in plan.selection.records for path in record.images)
        learnt = {path for path in trained if path in shown}
        shared = sum(bool(learnt.intersection(record.images)) for record in held_out.records)
        if shared:
            say(f"         {shared} of them show an image that is also trained on")


def uses_bf16(recipe: Recipe) -> bool:
    """Whether a run computes in bfloat16 here."""
    wanted = recipe.student.dtype
    return wanted == "bf16" or (wanted == "auto" and torch.cuda.is_available())


def attention_kernel(recipe: Recipe, path: Path) -> str:
    """Name of the attention implementation of every layer: FlashAttention where it can run.

    Args:
        recipe: of the run.
        path: folder of the student.
    """
    wanted, flash = recipe.student.attention, "flash_attention_2"
    if wanted != "auto":
        return wanted
    able = flash in FAMILIES[read_config(path).model_type].attentions
    here = torch.cuda.is_available() and find_spec("flash_attn") is not None
    return flash if able and here and uses_bf16(recipe) else "sdpa"


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
            "validation": recipe.validation.model_copy(
                update={
                    "manifest": _pick(None, recipe.validation.manifest),
                    "images": _pick(None, recipe.validation.images),
                }
            ),
        }
    )


def _pick(given: Path | None, written: str | None) -> str | None:
    chosen = written if given is None else str(given)
    return None if chosen is None else absolute(chosen)


def _open(cache: Path | str, recipe: Recipe, keep_rows: bool) -> TeacherCache:
    if not keep_rows:
        return TeacherCache.open(cache)
    folder = recipe.data.cache_folder or os.environ.get("MEDALIGN_CACHE_FOLDER")
    return TeacherCache.open(cache, nearby=folder, nearby_bytes=int(recipe.data.cache_gb * 1e9))


def _given(path: str | None, name: str) -> Path:
    if path is None:
        raise RecipeError(f"the recipe names no {name}: give --{name}")
    return Path(path)


def check_precision(recipe: Recipe) -> None:
    """Refuse a number format that the ZeRO stage cannot train in.

    Raises:
        RecipeError: names both keys.
    """
    stage = zero_stage(recipe)
    if stage == 0 and uses_bf16(recipe):
        # DeepSpeed's bf16 wrapper of stage 0 steps Adam once on zeros before training.
        raise RecipeError(
            "bf16 (student.dtype, auto on a GPU) needs deepspeed.stage 1, 2 or 3, got 0; or set "
            "student.dtype: fp32"
        )
    if stage == 3 and recipe.student.quantize != "none":
        raise RecipeError(
            f"student.quantize: {recipe.student.quantize} needs deepspeed.stage 0, 1 or 2: "
            "4-bit weights cannot be cut into parts"
        )
