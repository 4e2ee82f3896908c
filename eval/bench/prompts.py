"""Prompts to measure with: one question about each of a few real images."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record, Turn
from ...trainer.batch import collate
from ...trainer.data import Conversations
from ..source import Source

QUESTION = "Describe the findings in this image."


class BenchError(ValueError):
    """What was to be measured cannot be."""


@dataclass(frozen=True, slots=True, eq=False)
class BenchPrompt:
    """One prompt, as the model takes it.

    Attributes:
        inputs: tensors by name, batch of one.
        tokens: of the prompt, image tokens counted.
        visual: image tokens.
    """

    inputs: dict[str, Tensor]
    tokens: int
    visual: int


def sample_images() -> list[Path]:
    """The packaged sample's images."""
    folder = resources.files(__package__.partition(".")[0]) / "demo" / "sample" / "images"
    return sorted(Path(str(one)) for one in folder.iterdir())


def bench_prompts(
    source: Source, config: object, images: Sequence[Path], question: str, device: torch.device
) -> list[BenchPrompt]:
    """Make one prompt per image, on the device.

    Args:
        source: whose processor, template and geometry are used.
        config: of the loaded model.
        images: at least one file.
        question: asked about each.
        device: where the tensors go.

    Raises:
        BenchError: an image cannot be read.
    """
    student = source.spec()
    prompts = []
    for path in images:
        turn = Turn("human", f"{IMAGE_PLACEHOLDER}\n{question}")
        record = Record(
            id=path.name,
            images=(path.name,),
            conversations=(turn,),
            answer_type=None,
            fields={},
            line=0,
        )
        samples = Conversations(
            [record], path.absolute().parent, student, 0, None, ask=True, alpha=source.alpha
        )
        batch = collate([samples[0]], 0, left=True).to(device, source.dtype(device))
        if batch.skipped or batch.pixel_values is None:
            raise BenchError("; ".join(reason for _, reason in batch.skipped))
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "pixel_values": batch.pixel_values,
            **student.family.inputs(config, batch.input_ids, batch.grids),
        }
        visual = int((batch.input_ids == student.encoder.image_token_id).sum())
        prompts.append(BenchPrompt(inputs, batch.tokens, visual))
    return prompts
