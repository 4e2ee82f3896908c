"""Before anything heavy is loaded: do recipe, student, cache, manifest and images fit together?"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from ..pipeline.manifest import Record, checked_records, resolve_image
from ..teacher_cache.certificate import read_certificate
from ..teacher_cache.reader import TeacherCache
from .data.dataset import PackedRecords, Selection, select
from .distributed.zero_config import zero_config, zero_stage
from .preflight.student_check import refuse_unfit
from .recipe.recipe import Recipe, RecipeError, for_ranks
from .run.loggers import check_installed
from .students.families import FAMILIES
from .students.spec import StudentSpec, read_config, read_student
from .validation import choose


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
    refuse_unfit(student)
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
