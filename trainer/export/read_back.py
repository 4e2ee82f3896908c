"""Read an exported folder and hold it against what it was made of."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..student import load_base
from ..students.spec import OWN_CODE, StudentSpec
from .gate import Checked, GateError, gap
from .modeling_medalign_llava import MedAlignLlavaForConditionalGeneration
from .processor import conversation, process, read_processor
from .samples import GateSample


def device_here() -> torch.device:
    """Where an export computes: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_back(folder: Path, layer: int | None, dtype: torch.dtype) -> Any:
    """Load the folder; of code that travels with it, the same file here.

    Loading it from the folder would leave a copy of it in the user's Hugging Face cache.
    """
    gc.collect()  # PEFT's models hold themselves; two do not fit on every GPU
    device = device_here()
    if layer is None:
        return load_base(folder, dtype, device=device)
    load: Any = MedAlignLlavaForConditionalGeneration.from_pretrained
    model = load(
        folder,
        **OWN_CODE,
        dtype=dtype,
        device_map=None if device.type == "cpu" else {"": device},
    )
    return model.eval()


def compare(
    folder: Path,
    spec: StudentSpec,
    samples: Sequence[GateSample],
    before: Sequence[Tensor],
    merged: Sequence[Tensor],
    after: Sequence[Tensor],
) -> tuple[Checked, ...]:
    """Measure how far the three models and the exported processor lie apart.

    Args:
        folder: the export.
        spec: of the student.
        samples: the conversations.
        before: logits [T, V] of the adapter on its base model, one for each sample.
        merged: of the merged model.
        after: of the exported model.

    Raises:
        GateError: the exported processor makes another prompt.
    """
    processor = read_processor(folder)
    checked = []
    for sample, a, b, c in zip(samples, before, merged, after, strict=True):
        answers = sample.batch.predicts
        checked.append(
            Checked(
                record=sample.number,
                images=len(sample.record.images),
                merged=gap(a, b, answers),
                exported=gap(b, c, answers),
                pixels=_pixels(processor, spec, sample),
            )
        )
    return tuple(checked)


def _pixels(processor: Any, spec: StudentSpec, sample: GateSample) -> float:
    """Compare the exported processor's prompt with the training's.

    Raises:
        GateError: another prompt, or another shape of the pixels.
    """
    inputs = process(processor, conversation(processor, spec, sample.record), sample.images)
    prompt = spec.encoder.prompt(sample.record).input_ids.tolist()
    if inputs["input_ids"][0].tolist() != prompt:
        raise GateError(
            f"record {sample.number}: the exported processor makes other tokens of the prompt than "
            "the training did; nothing was exported"
        )
    if not sample.images or sample.batch.pixel_values is None:
        return 0.0
    own = sample.batch.pixel_values[: len(sample.images)]
    if inputs["pixel_values"].shape != own.shape:
        raise GateError(
            f"record {sample.number}: the exported processor makes pixels of "
            f"{tuple(inputs['pixel_values'].shape)}, the training had {tuple(own.shape)}"
        )
    return float((inputs["pixel_values"] - own).abs().max())
