"""What a conversion did, for a file and for people."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ..machine import counted, of_bytes
from .checkpoint_weights import Weights
from .describe import name_of
from .model_config import Settings
from .safetensors_writer import Written
from .tensor_plan import Piece, Plan, part_of
from .tokenizer import IMAGE_TOKEN, Tokens
from .vision_tower import Tower


def tensor_facts(
    plan: Plan, weights: Weights, tower: Tower, files: Mapping[str, tuple[Sequence[Piece], Written]]
) -> dict[str, Any]:
    """Counts of tensors and parameters, dtypes, files, and what was left out.

    Args:
        plan: of the conversion.
        weights: of the checkpoint.
        tower: the vision tower.
        files: pieces and result of every shard.
    """
    folders = [weights] if tower.weights is None else [weights, tower.weights]
    source = [stored for folder in folders for stored in folder.tensors.values()]
    parts: Counter[str] = Counter()
    for piece in plan.pieces:
        parts[part_of(piece.target)] += prod(piece.shape)
    return {
        "tensors": {
            "source": len(source),
            "converted": len(plan.pieces),
            "unused": len(plan.unused),
        },
        "parameters": {**dict(sorted(parts.items())), "total": sum(parts.values())},
        "dtypes": {
            "source": _counts(stored.dtype for stored in source),
            "converted": _counts(piece.dtype for piece in plan.pieces),
        },
        "weights": {
            name: {
                "bytes": written.bytes,
                "sha256": written.sha256,
                "tensors": len(pieces),
                "parameters": sum(prod(piece.shape) for piece in pieces),
            }
            for name, (pieces, written) in files.items()
        },
        "unused": [
            {
                "tensor": one.source,
                "file": one.file,
                "shape": list(one.stored.shape),
                "dtype": name_of(one.stored.dtype),
                "reason": one.reason,
            }
            for one in plan.unused
        ],
        "all_zero": sorted(name for _, written in files.values() for name in written.zeros),
        "not_read": [path.name for folder in folders for path in folder.beside],
    }


def setting_facts(settings: Settings, tower: Tower, tokens: Tokens, rows: int) -> dict[str, Any]:
    """Tower, tokenizer and images of a converted model."""
    return {
        "vision_tower": {
            "weights": tower.describe(),
            "named": settings.tower,
            "hidden_state": settings.layer,
            "settings": "from the folder's config.json"
            if tower.folder is not None
            else "shapes from the tensors, the rest as in OpenAI's CLIP",
        },
        "tokenizer": {
            "tokens": tokens.size,
            "image_token": IMAGE_TOKEN,
            "image_token_id": tokens.image_id,
            "begin_token_id": tokens.begin_id,
            "end_token": tokens.tokenizer.eos_token,
            "end_token_id": tokens.end_id,
            "pad_token": tokens.tokenizer.pad_token,
            "pad_token_id": tokens.pad_id,
            "rows_added": rows,
            "added_rows_are": "the mean of the others, in embedding and head" if rows else None,
            "prompts_compared": tokens.parity.prompts,
            "prompts_differing": [
                {"text": text, "original": list(theirs), "ours": list(ours)}
                for text, theirs, ours in tokens.parity.differing
            ],
        },
        "images": {
            "square": "padded with the mean colour" if settings.pads else "the middle cut out",
            "pixels": tower.config.image_size,
            "patch": tower.config.patch_size,
            "mean": list(tower.mean),
            "std": list(tower.std),
        },
        "config_keys_ignored": {key: settings.values[key] for key in settings.unknown},
        "notes": list(tokens.notes),
    }


def rows_of(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The report as a table of two columns."""
    tensors, parts, words = report["tensors"], report["parameters"], report["tokenizer"]
    yield "source", f"{report['source']}: {report['title']}, {len(report['sources'])} files"
    yield (
        "tensors",
        f"{tensors['source']:,} read, {tensors['converted']:,} converted, "
        f"{tensors['unused']:,} not needed",
    )
    yield "parameters", ", ".join(f"{name} {count:,}" for name, count in parts.items())
    for reason, count in Counter(one["reason"] for one in report["unused"]).items():
        yield "not needed", f"{counted(count, 'tensor')}: {reason}"
    yield "dtype", _kinds(report["dtypes"])
    yield (
        "vision tower",
        f"{report['vision_tower']['weights']}, hidden state "
        + str(report["vision_tower"]["hidden_state"]),
    )
    images = report["images"]
    yield "images", f"{images['pixels']} px, {images['square']}"
    yield (
        "tokens",
        f"image {words['image_token']} {words['image_token_id']}, end {words['end_token']} "
        f"{words['end_token_id']}, padding {words['pad_token']} {words['pad_token_id']}",
    )
    if words["rows_added"]:
        yield (
            "vocabulary",
            f"{counted(words['rows_added'], 'row')} added: {words['added_rows_are']}",
        )
    differing = len(words["prompts_differing"])
    same = f"{words['prompts_compared'] - differing} of {words['prompts_compared']} prompts"
    yield "token ids", f"{same} as the original tokenises them, chunk by chunk"
    for name in report["all_zero"]:
        yield "all zero", name
    for key, value in report["config_keys_ignored"].items():
        yield "ignored", f"config.json's {key}: {value!r}"
    for name in report["not_read"]:
        yield "not read", name
    for note in report["notes"]:
        yield "note", note
    for name, file in report["weights"].items():
        yield "written", f"{name}  {of_bytes(file['bytes'])}  sha256 {file['sha256'][:16]}..."


def _counts(dtypes: Any) -> dict[str, int]:
    return dict(sorted(Counter(name_of(dtype) for dtype in dtypes).items()))


def _kinds(dtypes: Mapping[str, Mapping[str, int]]) -> str:
    source, converted = (
        ", ".join(f"{name} x {count}" for name, count in dtypes[side].items())
        for side in ("source", "converted")
    )
    return source if source == converted else f"{source} -> {converted}"
