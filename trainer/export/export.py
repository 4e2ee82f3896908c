"""Export a run: find it, merge, write, read back, compare, describe."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from ...runtime.files import sha256_file, whole_folder, write_durably
from ..convert.describe import as_json
from ..student import llava_of, load_base, load_student
from ..students.spec import StudentSpec, read_config, read_student
from .card import Card, copy_terms, model_card
from .gate import (
    KL_LIMIT,
    Checked,
    fingerprints,
    judge,
    logits_of,
    require_known_transformers,
    same_tensors,
)
from .merge import check_target, merge, record, write_model
from .processor import write_processor
from .provenance import Origin, find_origin
from .read_back import compare, device_here, read_back
from .samples import GateSample, find_manifest, take

DtypeName = Literal["auto", "bf16", "fp32"]
SHARD_BYTES: Final = 5_000_000_000
_PACKAGES: Final = ("medalign", "torch", "transformers", "peft", "safetensors")
_SAMPLING: Final = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Options of an export.

    Attributes:
        checkpoint: `step-N`, `last`, `best`, or None for the finished adapter, else the newest.
        student: where the base model is now, if it moved.
        manifest, images: where the run's data are now, if they moved.
        dtype: of the weights; `auto` keeps float32 and makes anything shorter bfloat16.
        threshold: most mean KL, in nats a token, that merging may cost; None takes the dtype's.
        images_checked: conversations that the three models are compared on.
        overwrite: replace an earlier export.
    """

    checkpoint: str | None = None
    student: Path | None = None
    manifest: Path | None = None
    images: Path | None = None
    dtype: DtypeName = "auto"
    threshold: float | None = None
    images_checked: int = 4
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export.

    Attributes:
        out: the folder.
        layer: that W rotates; None for a plain Llava folder.
        dtype: of the weights.
        checked: what the gate measured.
    """

    out: Path
    layer: int | None
    dtype: torch.dtype
    checked: tuple[Checked, ...]


def export(run: Path, out: Path, wish: Wish, say: Callable[[str], None]) -> Exported:
    """Write a run's model as a folder that transformers loads without medalign.

    Args:
        run: run folder.
        out: folder to make.
        wish: the options.
        say: prints what a user wants to know on the way.

    Raises:
        ExportError: the run, the student or `out` cannot be used as asked.
        GateError: the exported model does not say what the adapter says; nothing is left.
        OSError: the disk is full, say; nothing is left.
    """
    origin = find_origin(run, wish.checkpoint, wish.student)
    check_target(out, run, origin.student, overwrite=wish.overwrite)
    if origin.recipe.loss.rotation:
        require_known_transformers()  # known now, not after gigabytes are written
    geometry = origin.recipe.student.geometry
    spec = read_student(origin.student, geometry)
    data = find_manifest(origin, wish.manifest, wish.images)
    samples = take(origin, spec, data, wish.images_checked)
    dtype = _dtype(wish.dtype, origin.student)
    say(f"run      {run}: {'' if origin.finished else 'unfinished, '}step {origin.step}")
    say(f"student  {origin.student}, in {dtype}")
    with whole_folder(out) as partial:
        layer, prints, before, merged = _write_merged(origin, dtype, samples, partial)
        config = read_config(origin.student)
        write_processor(spec, geometry, config, partial)
        _write_generation(origin.student, spec, partial)
        model = read_back(partial, layer, dtype)
        same_tensors(prints, fingerprints(model))
        after = logits_of(model, samples)
        checked = compare(partial, spec, samples, before, merged, after)
        for one in checked:
            say(one.line())
        limit = KL_LIMIT[dtype] if wish.threshold is None else wish.threshold
        judge(checked, limit)
        card = Card(origin=origin, data=data, name=out.name, layer=layer, checked=checked)
        copy_terms(origin.student, partial)
        write_durably(partial / "README.md", model_card(card, limit).encode())
        record(partial, _facts(card, dtype, limit))
    return Exported(out, layer, dtype, checked)


def _dtype(name: DtypeName, student: Path) -> torch.dtype:
    short = read_config(student).dtype in (torch.float16, torch.bfloat16)
    return torch.bfloat16 if name == "bf16" or (name == "auto" and short) else torch.float32


def _write_merged(
    origin: Origin, dtype: torch.dtype, samples: Sequence[GateSample], folder: Path
) -> tuple[int | None, dict[str, str], list[Tensor], list[Tensor]]:
    """Merge and write.

    Returns:
        The rotated layer, fingerprints of the merged model, logits of the adapter on its base
        model, and of the merged model.
    """
    base = load_base(origin.student, dtype, device=device_here())
    student = load_student(base, origin.adapter)
    before = logits_of(llava_of(student), samples)
    llava, layer = merge(student, dtype)
    merged = logits_of(llava, samples)
    write_model(llava, origin.student, layer, folder, SHARD_BYTES)
    return layer, fingerprints(llava), before, merged


def _write_generation(student: Path, spec: StudentSpec, folder: Path) -> None:
    """Carry the student's generation_config.json over, with the tokens that batches need."""
    source = student / "generation_config.json"
    settings = json.loads(source.read_text()) if source.is_file() else {}
    tokenizer = spec.processor.tokenizer
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if settings.get(name) is None:
            settings[name] = getattr(tokenizer, name)
    if not settings.get("do_sample"):
        # Greedy decoding ignores them, but transformers would refuse to save them again.
        settings = {key: value for key, value in settings.items() if key not in _SAMPLING}
    write_durably(folder / "generation_config.json", as_json(settings))


def _facts(card: Card, dtype: torch.dtype, limit: float) -> dict[str, Any]:
    origin = card.origin
    adapter = sha256_file(origin.adapter / "adapter_model.safetensors")
    return {
        "versions": {name: version(name) for name in _PACKAGES},
        "dtype": str(dtype).removeprefix("torch."),
        "rotated_layer": card.layer,
        "step": origin.step,
        "finished": origin.finished,
        "adapter_sha256": adapter,
        "student_sha256": origin.identity["student"],
        "cache": origin.identity.get("cache"),
        "cache_content": origin.identity.get("cache_content"),
        "expert": origin.identity.get("expert"),
        "recipe": card.recipe(),
        "gate": {
            "device": device_here().type,
            "most_mean_kl": limit,
            "records": [one.to_json() for one in card.checked],
        },
    }
