"""The processor that goes with an export: the pixels and prompts of the training, left padding."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, LlavaProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record
from ..students.spec import OWN_CODE, StudentSpec
from .gate import GateError


def write_processor(spec: StudentSpec, geometry: str, config: Any, folder: Path) -> None:
    """Write tokenizer, image processor and chat template.

    Args:
        spec: of the student, with the geometry that the run used.
        geometry: of the recipe; `processor` keeps the student's own image processor.
        config: of the model.
        folder: to write into.
    """
    tokenizer = spec.processor.tokenizer
    tokenizer.padding_side = "left"  # a prompt must end where its answer begins
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    images = spec.processor.image_processor
    # The tower's class token is no visual token, but the processor counts it.
    class_token = int(config.vision_feature_select_strategy == "default")
    llava: Any = LlavaProcessor
    llava(
        image_processor=images if geometry == "processor" else _images(spec),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=class_token,
        chat_template=spec.encoder.chat_template,
        image_token=spec.encoder.image_token,
    ).save_pretrained(folder)


def read_processor(folder: Path) -> Any:
    """Read an exported processor as its card says; it needs none of the folder's code."""
    load: Any = AutoProcessor.from_pretrained
    return load(folder, backend="pil", **OWN_CODE)


def conversation(processor: Any, spec: StudentSpec, record: Record) -> list[dict[str, Any]]:
    """A record's first question as messages that the exported template renders as in training.

    Raises:
        GateError: it renders another prompt, whatever the form of the messages.
    """
    prompt = spec.encoder.prompt_text(record)
    text = record.conversations[0].text
    for content in (_parts(text, "\n"), _parts(text, ""), text):
        messages = [{"role": "user", "content": content}]
        # Templates raise what they like on content of a form that they do not know.
        with contextlib.suppress(Exception):
            if processor.apply_chat_template(messages, add_generation_prompt=True) == prompt:
                return messages
    raise GateError("the exported chat template does not render the prompt of the training")


def process(processor: Any, messages: list[dict[str, Any]], images: Sequence[Any]) -> Any:
    """Tokens and pixels of a prompt, through the exported processor alone.

    Args:
        processor: from `read_processor`.
        messages: from `conversation`.
        images: uint8 [H, W, 3] arrays, one for each placeholder.
    """
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    bos = processor.tokenizer.bos_token
    return processor(
        text=text,
        images=[Image.fromarray(image) for image in images] or None,
        # A template that writes the BOS itself must not get a second one.
        add_special_tokens=not (bos and text.startswith(bos)),
        return_tensors="pt",
    )


def _parts(text: str, newline: str) -> list[dict[str, str]]:
    """Content as Hugging Face's list; `newline` is taken away after an image."""
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
            piece = piece.removeprefix(newline)
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _images(spec: StudentSpec) -> Any:
    """An image processor that does what the recipe's geometry says."""
    shape = spec.square
    side = shape.image_size
    square = {"height": side, "width": side}
    normal: dict[str, Any] = {"image_mean": list(shape.mean), "image_std": list(shape.std)}
    clip: Any = CLIPImageProcessor
    if shape.geometry == "pad":
        pad: Any = LlavaImageProcessor
        return pad(do_pad=True, size={"shortest_edge": side}, crop_size=square, **normal)
    if shape.geometry == "crop":
        return clip(size={"shortest_edge": side}, crop_size=square, **normal)
    return clip(size=square, do_center_crop=False, **normal)
