"""Gemma-3 and MedGemma: one square, patches pooled to a grid of soft tokens, seen both ways.

The tokens of an image attend to each other in both directions; the model learns which they are
from `token_type_ids`.
"""

import math
from pathlib import Path
from typing import Any, Final

from torch import Tensor
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor

from ...teacher_cache.schema import PatchGrid
from ..data.conversation import Frame
from .family import Family, StudentError, image_token_of
from .square import BILINEAR, Square, black_square, check_pixels


def _check(path: Path, config: Any) -> None:
    vision = config.vision_config
    side = math.isqrt(config.mm_tokens_per_image)
    patches = vision.image_size // vision.patch_size
    if side * side != config.mm_tokens_per_image or patches % side:
        raise StudentError(
            f"{path}: mm_tokens_per_image {config.mm_tokens_per_image} is no square grid that "
            f"divides the tower's {patches}x{patches} patches"
        )
    if config.text_config.use_bidirectional_attention:
        raise StudentError(
            f"{path}: the language model attends to later text (use_bidirectional_attention), "
            "so it cannot generate"
        )


def _sight(path: Path, config: Any, images: Any, geometry: str) -> Square:
    check_pixels(path, images, BILINEAR)
    size = config.vision_config.image_size
    if geometry not in ("processor", "stretch"):
        raise StudentError(
            f"{path}: a gemma3 student stretches its images, student.geometry cannot be "
            f"{geometry!r}"
        )
    resized = (images.size.get("height"), images.size.get("width"))
    if resized != (size, size) or not images.do_resize:
        raise StudentError(
            f"{path}: the image processor resizes to {resized}, the tower takes {size}x{size}"
        )
    if images.do_pan_and_scan:
        raise StudentError(
            f"{path}: the image processor cuts images into crops (do_pan_and_scan), whose patches "
            "no cache row describes; set it to false in preprocessor_config.json"
        )
    side = math.isqrt(config.mm_tokens_per_image)
    return Square.of(path, images, PatchGrid(side, side), size, "stretch", BILINEAR)


def _frame(path: Path, config: Any, processor: Any) -> tuple[str, Frame]:
    visual = image_token_of(path, config, processor.tokenizer)
    begin, end = (
        processor.tokenizer.convert_ids_to_tokens(number)
        for number in (config.boi_token_id, config.eoi_token_id)
    )
    if begin != processor.boi_token or end != processor.tokenizer.eoi_token:
        raise StudentError(
            f"{path}: config.json puts an image between {begin!r} and {end!r}, the processor "
            f"between {processor.boi_token!r} and {processor.tokenizer.eoi_token!r}"
        )
    return begin, Frame(
        visual=visual,
        before=f"\n\n{begin}",
        after=f"{end}\n\n",
        end_id=config.eoi_token_id,
        content="parts+newline",
    )


def _inputs(config: Any, input_ids: Tensor, _grids: Tensor | None) -> dict[str, Tensor]:
    return {"token_type_ids": (input_ids == config.image_token_id).long()}


GEMMA3: Final = Family(
    model_type="gemma3",
    model_class=Gemma3ForConditionalGeneration,
    processor_class=Gemma3Processor,
    projector="model.multi_modal_projector",
    # Flash attention knows no mask that looks ahead within an image.
    attentions=("sdpa",),
    check=_check,
    sight=_sight,
    frame=_frame,
    inputs=_inputs,
    blank=black_square,
)
