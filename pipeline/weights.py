"""The visual part of a CLIP checkpoint: read without running code, and identify."""

import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

CHECKPOINT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_LISTED = 4


class ExpertError(ValueError):
    """An expert that cannot be loaded: unknown name, missing or unfit weights."""


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint file that `path` names: the file itself, or the one in a folder.

    Raises:
        ExpertError: nothing lies there, or a folder holds no checkpoint or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ExpertError(f"{path}: no such weights file or folder")
    for name in CHECKPOINT_NAMES:
        if (path / name).is_file():
            return path / name
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.name for file in files) or "none"
    raise ExpertError(
        f"{path}: expected {' or '.join(CHECKPOINT_NAMES)} in this folder, found {names}; "
        "give --weights the file itself"
    )


def read_visual_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors under `visual.` of a checkpoint, with that prefix taken off.

    Takes safetensors, a plain state dict, and training checkpoints (`{"state_dict": ...}`)
    whose keys may start with `module.`, as UniMed-CLIP's do. Everything else in the file,
    the text tower above all, is left on disk: files are memory-mapped.

    Raises:
        ExpertError: the file is damaged, needs code to be read, or has no visual keys.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _load_torch_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ExpertError(f"{path}: expected a state dict, got {type(content).__name__}")
    visual = {short: content[key] for key, short in _visual_keys(path, content).items()}
    for name, value in visual.items():
        if not isinstance(value, Tensor):
            raise ExpertError(f"{path}: visual.{name} is no tensor but {type(value).__name__}")
    return visual


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Identify weights by content: SHA-256 (hex) over names, dtypes, shapes and bytes.

    Names are taken in sorted order and without the checkpoint's prefixes, so the same tower
    saved by torch and as safetensors, or with another text tower, has the same identity.
    A copy converted to another dtype has not.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def listed(names: list[str]) -> str:
    """Join a few names for a message, and count the rest."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = _visual_keys(path, dict.fromkeys(file.keys()))
            return {short: file.get_tensor(key) for key, short in keys.items()}
    except (SafetensorError, OSError) as error:
        raise ExpertError(f"{path}: not a readable safetensors file ({error})") from error


def _load_torch_file(path: Path) -> Any:
    try:
        # Files saved before torch 1.6 are no zip archives and cannot be memory-mapped.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of TorchScript before it refuses it
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises a dozen kinds here, some of them private
        # The end of torch's text recommends weights_only=False, which would run code of the file.
        reason = str(error).partition("\n")[0].partition(". In PyTorch")[0] or type(error).__name__
        raise ExpertError(
            f"{path}: not a torch file of plain tensors; one that must run code to be read, or "
            f"is damaged, is refused (save the state dict as safetensors instead): {reason}"
        ) from error


def _visual_keys(path: Path, content: Mapping[Any, Any]) -> dict[str, str]:
    """Map the file's visual keys to names without prefix."""
    keys = {key: key.removeprefix("module.") for key in content if isinstance(key, str)}
    visual = {
        key: name.removeprefix("visual.")
        for key, name in keys.items()
        if name.startswith("visual.")
    }
    if not visual:
        raise ExpertError(
            f"{path}: no key starts with visual. or module.visual., as those of a CLIP "
            f"checkpoint do; found {listed(list(keys)) or 'no keys'}"
        )
    return visual
