"""A student that answers any question about any images, by any of the ten decoders."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record, Turn
from ...pipeline.pixels import Alpha, decode
from ...trainer.data.batch import Sample, collate
from ...trainer.student import llava_of
from ...trainer.students.spec import StudentSpec
from ..decoders import Spec
from ..decoders.limits import check_fit
from ..generate import answer_batch
from ..predictions import Answer
from ..source import Source


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: draws depend on it and the seed alone.
        text: the question; placeholders are put in front of it unless it has some.
        images: any mode that Pillow knows.
    """

    id: str
    text: str
    images: tuple[Image.Image, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Answerer:
    """A loaded student.

    Attributes:
        model: the Hugging Face model, with the run's adapter and rotation.
        student: description of its folder.
        alpha: colour behind transparent pixels.
    """

    model: Any
    student: StudentSpec
    alpha: Alpha

    @classmethod
    def load(cls, source: Source, device: torch.device) -> Self:
        """Load the model of a source; see `Source.load`."""
        return cls(llava_of(source.load(device)), source.spec(), source.alpha)

    def answer(self, questions: Sequence[Question], spec: Spec, seed: int) -> list[Answer]:
        """Answer a batch of questions, in their order.

        Raises:
            DecodingError: the decoder does not fit the student.
            ConversationError: a question does not fit the student's template.
            UnfitShapeError: the student cannot take an image of this shape.
        """
        check_fit(spec, self.student)
        records = [_record(question) for question in questions]
        samples = [self._sample(*pair) for pair in zip(records, questions, strict=True)]
        pad = self.student.processor.tokenizer.pad_token_id or 0
        batch = collate(samples, pad, left=True)
        return list(answer_batch(self.model, self.student, batch, records, spec, seed))

    def _sample(self, record: Record, question: Question) -> Sample:
        sights = [self.student.sight.see(rgb_of(image, self.alpha)) for image in question.images]
        encoded = self.student.encoder.prompt(record, [grid.size for _, grid in sights])
        return Sample(
            record.id,
            encoded,
            pixels=tuple(pixels for pixels, _ in sights),
            teachers=(None,) * len(sights),
            grids=tuple(grid for _, grid in sights),
        )


def rgb_of(image: Image.Image, alpha: Alpha) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of an opened image, by the rules for files: depth, palette, transparency."""
    if image.mode == "RGB":
        return np.asarray(image)
    file = io.BytesIO()
    # Of Pillow's modes only colour spaces without transparency have no place in a PNG.
    storable = image.mode in {"1", "L", "LA", "P", "RGBA", "I", "I;16"}
    (image if storable else image.convert("RGB")).save(file, "PNG")
    return decode(file.getvalue(), "image", alpha=alpha)


def _record(question: Question) -> Record:
    text = question.text
    if IMAGE_PLACEHOLDER not in text:
        text = f"{IMAGE_PLACEHOLDER}\n" * len(question.images) + text
    return Record(
        id=question.id,
        images=tuple(str(k) for k in range(len(question.images))),
        conversations=(Turn("human", text),),
        answer_type=None,
        fields={},
        line=0,
    )
