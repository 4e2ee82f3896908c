"""One model out of base and adapter, written under the names that its source uses."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...runtime.files import sync_files, write_durably
from ..convert.describe import as_json
from ..convert.tensor_plan import bare
from ..machine import disk_errors
from .provenance import ExportError

RECORD: Final = "export.json"
REMOTE_CODE: Final = "modeling_medalign_llava.py"
_REMOTE_TYPE: Final = "medalign_llava"
_REMOTE_CLASS: Final = "MedAlignLlavaForConditionalGeneration"


def check_target(out: Path, run: Path, student: Path, *, overwrite: bool) -> None:
    """Refuse an --out that would cost somebody else's files.

    Raises:
        ExportError: `out` is a file, lies inside the run or the student, or holds something;
            with `overwrite`, something that is no export.
    """
    target = out.resolve()
    for owner, name in ((run.resolve(), "run"), (student.resolve(), "student")):
        if target == owner or owner in target.parents:
            raise ExportError(f"{out} is inside the {name} {owner}; choose another --out")
        if target in owner.parents:
            raise ExportError(f"{out} holds the {name} {owner}; choose another --out")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} exists and is no folder; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ExportError(f"{out} is not empty; choose another --out, or give --overwrite")
        if not (out / RECORD).is_file():
            raise ExportError(f"{out} holds something else than an export; choose another --out")


def record(folder: Path, facts: dict[str, Any]) -> None:
    """Write `export.json`: facts, and size and SHA-256 of every other file."""
    write_durably(folder / RECORD, as_json({**facts, "files": sync_files(folder)}))


def merge(student: Any, dtype: torch.dtype) -> tuple[Any, int | None]:
    """Fold an adapter into its base model, in place.

    Args:
        student: PEFT model from `load_student`.
        dtype: of every parameter from now on.

    Returns:
        The Llava model, and the layer that W rotates; None without W or with a W of zero, which
        is taken away.
    """
    llava = student.merge_and_unload(safe_merge=True)
    for parameter in llava.parameters():
        # Not llava.to(dtype), which would round the frequencies of the rotary embedding too.
        parameter.data = parameter.data.to(dtype)
    for number, block in enumerate(llava.model.language_model.layers):
        rotation = getattr(block, "visual_rotation", None)
        if rotation is not None and bool(rotation.weight.any()):
            return llava, number
        if rotation is not None:
            del block.visual_rotation
    return llava, None


def write_model(
    llava: Any, source: Path, layer: int | None, folder: Path, shard_bytes: int
) -> None:
    """Write weights, config.json and, with a rotation, the code that it needs.

    Tensors keep their names of the source's files, whatever this version of transformers calls
    them: what reads the source reads the export.

    Args:
        llava: from `merge`.
        source: the student's folder.
        layer: that W rotates, or None.
        folder: to write into.
        shard_bytes: most bytes of a weight file, unless one tensor is larger.

    Raises:
        ExportError: source and model do not hold the same tensors.
        OSError: the disk is full, say.
    """
    tensors = _by_source_name(llava, source, layer)
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=shard_bytes)
    with disk_errors(folder):
        for file, names in plan.filename_to_tensors.items():
            # Cloned: files hold no two tensors of one storage, and nothing but the tensor.
            shard = {name: tensors[name].detach().cpu().clone().contiguous() for name in names}
            save_file(shard, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_durably(folder / "model.safetensors.index.json", as_json(index))
    _write_config(llava, layer, folder)


def _write_config(llava: Any, layer: int | None, folder: Path) -> None:
    dtype = str(llava.dtype).removeprefix("torch.")
    config = json.loads(llava.config.to_json_string())
    config |= {"architectures": [type(llava).__name__], "dtype": dtype}
    for part in ("text_config", "vision_config"):
        if "dtype" in config[part]:
            config[part]["dtype"] = dtype
    if layer is not None:
        module = Path(REMOTE_CODE).stem
        config |= {
            "model_type": _REMOTE_TYPE,
            "architectures": [_REMOTE_CLASS],
            "rotated_layer": layer,
            "auto_map": {
                "AutoConfig": f"{module}.MedAlignLlavaConfig",
                "AutoModelForImageTextToText": f"{module}.{_REMOTE_CLASS}",
            },
        }
        shutil.copyfile(Path(__file__).with_name(REMOTE_CODE), folder / REMOTE_CODE)
    write_durably(folder / "config.json", as_json(config))


def _by_source_name(llava: Any, source: Path, layer: int | None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = llava.state_dict()
    tied = {"lm_head.weight"} if llava.config.tie_word_embeddings else set()
    names = _source_names(source)
    if not names:  # an older folder of pickled weights: this version's own names
        return {name: tensor for name, tensor in state.items() if name not in tied}
    inner = {bare(name): tensor for name, tensor in state.items()}
    tensors = {name: inner[key] for key, name in names.items() if key in inner}
    rotation = f"layers.{layer}.visual_rotation.weight"
    if layer is not None:
        prefix = names[f"layers.{layer}.input_layernorm.weight"].rpartition(".input_")[0]
        tensors[f"{prefix}.visual_rotation.weight"] = inner[rotation]
    lost = sorted(inner.keys() - names.keys() - tied - {rotation})
    if lost or len(inner) != len(state):
        raise ExportError(
            f"{source}: its weight files have no place for {', '.join(lost[:5]) or 'some tensors'}"
        )
    return tensors


def _source_names(source: Path) -> dict[str, str]:
    """Names in the source's weight files, by what is left of them without wrappers."""
    names: dict[str, str] = {}
    for path in sorted(source.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            names.update({bare(name): name for name in file.keys()})  # noqa: SIM118 - no mapping
    return names
