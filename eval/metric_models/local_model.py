"""Load a Hugging Face model or tokenizer from a local folder, whole or not at all."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from ..predictions import AnswersError

BATCH = 16
"""How many texts a model reads at a time."""

_DECIDING = ("config.json", "tokenizer.json", "vocab.txt", "*.safetensors", "*.th")
# Older versions of transformers saved the numbers 0 to 511 with the weights.
_COUNTED = "bert.embeddings.position_ids"


def load_model(kind: Any, folder: Path, device: torch.device, **settings: Any) -> Any:
    """Return a float32 model in evaluation mode.

    Args:
        kind: an Auto class of transformers.
        folder: holds configuration and safetensors.
        device: where it goes.
        settings: in place of those of the configuration.

    Raises:
        AnswersError: it cannot be loaded, a tensor holds numbers that are not finite, or one is
            missing, which transformers would fill with random numbers.
    """
    model, loading = load_part(
        kind,
        folder,
        dtype=torch.float32,
        use_safetensors=True,  # others would have to be unpickled
        output_loading_info=True,
        **settings,
    )
    # Metrics read token vectors; checkpoints of language models have no pooler to fill this one.
    missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
    if missing:
        raise AnswersError(
            f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}; "
            "this is another model, or part of one"
        )
    refuse_not_finite(model.state_dict(), str(folder))
    return model.to(device).eval()


def load_part(kind: Any, folder: Path, **settings: Any) -> Any:
    """Return `kind.from_pretrained` of a local folder.

    Raises:
        AnswersError: it cannot be loaded.
    """
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **settings)
    except Exception as error:  # transformers raises whatever the file formats do
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise AnswersError(f"{folder}: cannot be loaded as {kind.__name__}: {reason}") from error


def load_bert(folder: Path, option: str) -> tuple[Any, Any]:
    """Return configuration and tokenizer of a BERT whose weights lie elsewhere.

    Args:
        folder: holds both.
        option: that gave it, for messages.

    Raises:
        AnswersError: they cannot be loaded, or are another kind of model's.
    """
    config = load_part(AutoConfig, folder)
    if config.model_type != "bert":
        raise AnswersError(f"{folder}: is of type {config.model_type!r}, {option} takes a BERT")
    return config, load_part(AutoTokenizer, folder)


def load_tensors(file: Path | BinaryIO, name: str) -> dict[str, Any]:
    """Return the mapping that a torch file of plain tensors holds; no code in it is ever run.

    Args:
        file: path, or the open file.
        name: of the file, for messages.

    Raises:
        AnswersError: it would have to run code to be read, is damaged, or holds no mapping.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of TorchScript before it refuses it
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here, some of them private
        # The rest of torch's text recommends to load it all the same.
        reason = str(error).partition("\n")[0].partition(". In PyTorch")[0] or type(error).__name__
        raise AnswersError(
            f"{name}: not a torch file of plain tensors; one that must run code to be read, or is "
            f"damaged, is refused: {reason}"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise AnswersError(f"{name}: holds no state dict")
    return dict(content)


def fill(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Put the tensors of a checkpoint into a model that holds a BERT.

    Args:
        model: under the names of the checkpoint.
        weights: tensors by name.
        name: of the file and the model, for messages.

    Raises:
        AnswersError: a tensor is missing, too many or of another shape.
    """
    try:
        model.load_state_dict({key: value for key, value in weights.items() if key != _COUNTED})
    except RuntimeError as error:
        # torch's first line names the class only.
        lines = [line.strip() for line in str(error).splitlines()]
        raise AnswersError(f"{name}: {lines[min(1, len(lines) - 1)][:200]}") from None


def refuse_not_finite(weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse damaged weights: NaN passes through a network and comes out as a label.

    Args:
        weights: tensors by name.
        name: of the file, for messages.

    Raises:
        AnswersError: a tensor holds NaN or infinity.
    """
    damaged = [key for key, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if damaged:
        raise AnswersError(
            f"{name}: {len(damaged)} tensors hold numbers that are not finite, the first is "
            f"{damaged[0]}; the file is damaged, fetch it again"
        )


def longest_input(tokenizer: Any, config: Any) -> int:
    """Return how many tokens a model takes, the least of tokenizer and configuration."""
    positions = int(config.max_position_embeddings)
    if config.model_type == "roberta":
        positions -= int(config.pad_token_id) + 1  # RoBERTa counts positions from there
    return min(int(tokenizer.model_max_length), positions)


def encode(tokenizer: Any, texts: Sequence[str], longest: int, device: torch.device) -> Any:
    """Return texts as token ids [B, T] and their mask, cut at `longest` tokens and padded."""
    return tokenizer(
        list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
    ).to(device)


def in_batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts a few at a time, those of like length together, so that little is padding."""
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]


def best_device() -> torch.device:
    """Return the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def identify(path: Path) -> dict[str, str]:
    """Return path and SHA-256 of a file, or of a model folder's files, in order of names."""
    digest = hashlib.sha256()
    deciding = [file for pattern in _DECIDING for file in path.glob(pattern)]
    for file in sorted(deciding) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return {"path": str(path), "sha256": digest.hexdigest()}
