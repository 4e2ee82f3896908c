"""Qwen2.5-VL: the grid follows the image, 2x2 patches merge into one token, positions are 3-D."""

from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from ..data.conversation import Frame
from .family import Family, StudentError, image_token_of
from .flexible import Flexible


def _check(path: Path, config: Any) -> None:
    if config.text_config.use_sliding_window:
        raise StudentError(f"{path}: sliding windows of a qwen2_5_vl student are not supported")


def _sight(path: Path, config: Any, images: Any, geometry: str) -> Flexible:
    if geometry != "processor":
        raise StudentError(
            f"{path}: a qwen2_5_vl student sees images at their own shape, student.geometry "
            f"cannot be {geometry!r}"
        )
    sight, vision = Flexible.of(path, images), config.vision_config
    cut = (sight.patch_size, sight.merge, sight.frames)
    taken = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if cut != taken:
        raise StudentError(
            f"{path}: the image processor cuts patches of (pixels, merged, frames) {cut}, the "
            f"tower takes {taken}"
        )
    return sight


def _frame(path: Path, config: Any, processor: Any) -> tuple[str, Frame]:
    token = image_token_of(path, config, processor.tokenizer)
    # The template itself writes what stands before and after an image, into lists of parts alone.
    return token, Frame(end_id=config.vision_end_token_id, content="parts+newline")


def _inputs(config: Any, input_ids: Tensor, grids: Tensor | None) -> dict[str, Tensor]:
    if grids is None:
        return {}
    merge = config.vision_config.spatial_merge_size
    frames = torch.ones_like(grids[:, :1])
    return {
        "image_grid_thw": torch.cat([frames, grids * merge], dim=1),
        "mm_token_type_ids": (input_ids == config.image_token_id).int(),
    }


def _blank(config: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    vision = config.vision_config
    merge = vision.spatial_merge_size
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.zeros(merge**2, values, device=device, dtype=dtype),
        "image_grid_thw": torch.tensor([[1, merge, merge]], device=device),
    }


QWEN2_5_VL: Final = Family(
    model_type="qwen2_5_vl",
    model_class=Qwen2_5_VLForConditionalGeneration,
    processor_class=Qwen2_5_VLProcessor,
    projector="model.visual.merger",
    check=_check,
    sight=_sight,
    frame=_frame,
    inputs=_inputs,
    blank=_blank,
)
