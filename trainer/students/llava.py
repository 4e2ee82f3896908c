"""Llava with a Mistral, Qwen2 or Llama language model: one square, one token per patch."""

from pathlib import Path
from typing import Any, Final

from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from ...pipeline.geometry import GeometryName
from ...teacher_cache.schema import PatchGrid
from ..data.conversation import Frame
from .family import Family, StudentError
from .square import BICUBIC, Square, black_square, check_pixels

TEXT_MODELS = ("llama", "mistral", "qwen2")


def _check(path: Path, config: Any) -> None:
    if config.text_config.model_type not in TEXT_MODELS:
        raise StudentError(
            f"{path} has a {config.text_config.model_type!r} language model; "
            f"supported are {', '.join(TEXT_MODELS)}"
        )


def _sight(path: Path, config: Any, images: Any, geometry: str) -> Square:
    grid = _grid(path, config)
    size = config.vision_config.image_size
    if geometry == "processor":
        geometry = _geometry(path, images, size)
    return Square.of(path, images, grid, size, geometry)


def _grid(path: Path, config: Any) -> PatchGrid:
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    grid = PatchGrid(side, side)
    class_token = "clip" in vision.model_type and "siglip" not in vision.model_type
    dropped = config.vision_feature_select_strategy == "default"
    if class_token != dropped:
        raise StudentError(
            f"{path}: vision_feature_select_strategy {config.vision_feature_select_strategy!r} "
            f"does not leave one visual token per patch with a {vision.model_type!r} tower"
        )
    return grid


def _geometry(path: Path, images: Any, size: int) -> GeometryName:
    check_pixels(path, images, BICUBIC)
    edges = dict(images.size or {})
    crop = dict(getattr(images, "crop_size", None) or {})
    if edges.get("shortest_edge") == size or edges == {"height": size, "width": size}:
        if getattr(images, "do_pad", False):
            return "pad"
        if images.do_center_crop and crop.get("height") == crop.get("width") == size:
            return "crop" if edges.get("shortest_edge") else "stretch"
        if not images.do_center_crop and "height" in edges:
            return "stretch"
    raise StudentError(
        f"{path}: the image processor (size {edges}, crop {crop}) does not give the tower's "
        f"{size}x{size} square by padding, centre crop or stretching; set student.geometry"
    )


def _frame(path: Path, config: Any, processor: Any) -> tuple[str, Frame]:
    token = processor.tokenizer.convert_ids_to_tokens(config.image_token_id)
    special = getattr(processor, "image_token", None)
    if token is None or token != special:
        raise StudentError(
            f"{path}: the student has no image token: config.json names id "
            f"{config.image_token_id} ({token!r}), the processor {special!r}"
        )
    return token, Frame()


def _inputs(_config: Any, _input_ids: Tensor, _grids: Tensor | None) -> dict[str, Tensor]:
    return {}


LLAVA: Final = Family(
    model_type="llava",
    model_class=LlavaForConditionalGeneration,
    processor_class=LlavaProcessor,
    projector="model.multi_modal_projector",
    check=_check,
    sight=_sight,
    frame=_frame,
    inputs=_inputs,
    blank=black_square,
)
