"""What a student's folder says before any weight is read: tokens, patches, pixels.

Everything that medalign must know of a model family stands here and in `trainer/student.py`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, AutoProcessor, GenerationConfig

from ...pipeline.geometry import GeometryName
from ...teacher_cache.schema import PatchGrid
from ..conversation import ConversationEncoder

TEXT_MODELS = ("llama", "mistral", "qwen2")


class StudentError(ValueError):
    """A folder does not hold a student that medalign can train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """What a student's folder says, weights unread.

    Attributes:
        path: the folder.
        processor: its Hugging Face processor (tokenizer, image processor, chat template).
        encoder: records to tokens.
        layers: decoder layers of the language model.
        width: C, hidden size of the language model.
        grid: patches of the square that the vision tower sees; N = grid.size visual tokens.
        image_size: side of that square in pixels.
        geometry: how an image becomes the square.
        mean, std: normalisation of the three channels, values in 0..1.
        fill: colour of the padding.
    """

    path: Path
    processor: Any
    encoder: ConversationEncoder
    layers: int
    width: int
    grid: PatchGrid
    image_size: int
    geometry: GeometryName
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill: tuple[int, int, int]


def read_student(path: Path, geometry: str = "processor") -> StudentSpec:
    """Read a student's configuration and processor; nothing is fetched from a network.

    Args:
        path: a local Hugging Face folder.
        geometry: `processor`, or the geometry to use whatever the processor says.

    Raises:
        StudentError: no such folder, another kind of model, no image token or chat template, or
            an image processor that medalign cannot follow exactly.
    """
    config = read_config(path)
    try:
        load: Any = AutoProcessor.from_pretrained
        processor = load(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudentError(f"{path}: cannot read the processor: {first_line(error)}") from error
    grid = _grid(path, config)
    size = config.vision_config.image_size
    images = processor.image_processor
    mean, std = (tuple(float(x) for x in v) for v in (images.image_mean, images.image_std))
    found = _geometry(path, images, size) if geometry == "processor" else geometry
    return StudentSpec(
        path=path,
        processor=processor,
        encoder=_encoder(path, config, processor, grid),
        layers=config.text_config.num_hidden_layers,
        width=config.text_config.hidden_size,
        grid=grid,
        image_size=size,
        geometry=cast(GeometryName, found),
        mean=cast(tuple[float, float, float], mean),
        std=cast(tuple[float, float, float], std),
        # As LLaVA does: the mean colour, cut to whole numbers.
        fill=cast(tuple[int, int, int], tuple(int(x * 255) for x in mean)),
    )


def read_config(path: Path) -> Any:
    """Read and check config.json of a Llava student.

    Raises:
        StudentError: no such folder, or a model that medalign does not know.
    """
    if not path.is_dir():
        raise StudentError(
            f"no student at {path}: a local folder in Hugging Face Llava format is expected"
        )
    if not (path / "config.json").is_file():
        raise StudentError(f"{path} has no config.json, so it is no Hugging Face model")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise StudentError(f"{path}: cannot read config.json: {first_line(error)}") from error
    if config.model_type != "llava":
        raise StudentError(
            f"{path} is a {config.model_type!r} model; students are `llava` models in Hugging "
            "Face format"
        )
    if config.text_config.model_type not in TEXT_MODELS:
        raise StudentError(
            f"{path} has a {config.text_config.model_type!r} language model; "
            f"supported are {', '.join(TEXT_MODELS)}"
        )
    return config


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
    _check_pixels(path, images)
    wanted = dict(images.size or {})
    crop = dict(getattr(images, "crop_size", None) or {})
    if wanted.get("shortest_edge") == size or wanted == {"height": size, "width": size}:
        if getattr(images, "do_pad", False):
            return "pad"
        if images.do_center_crop and crop.get("height") == crop.get("width") == size:
            return "crop" if wanted.get("shortest_edge") else "stretch"
        if not images.do_center_crop and "height" in wanted:
            return "stretch"
    raise StudentError(
        f"{path}: the image processor (size {wanted}, crop {crop}) does not give the tower's "
        f"{size}x{size} square by padding, centre crop or stretching; set student.geometry"
    )


def _check_pixels(path: Path, images: Any) -> None:
    """Refuse settings that medalign's own pixels would not follow."""
    followed = {
        "resample": (int(images.resample), 3),
        "do_rescale": (bool(images.do_rescale), True),
        "rescale_factor": (round(float(images.rescale_factor) * 255, 6), 1.0),
        "do_normalize": (bool(images.do_normalize), True),
    }
    for name, (found, wanted) in followed.items():
        if found != wanted:
            raise StudentError(
                f"{path}: the image processor has {name} {getattr(images, name)!r}; medalign "
                "resizes by the bicubic filter (3), divides by 255 and normalises"
            )


def _encoder(path: Path, config: Any, processor: Any, grid: PatchGrid) -> ConversationEncoder:
    token_id = config.image_token_id
    token = processor.tokenizer.convert_ids_to_tokens(token_id)
    special = getattr(processor, "image_token", None)
    if token is None or token != special:
        raise StudentError(
            f"{path}: the student has no image token: config.json names id {token_id} "
            f"({token!r}), the processor {special!r}"
        )
    template = processor.chat_template or processor.tokenizer.chat_template
    if not isinstance(template, str):
        raise StudentError(f"{path}: the student has no chat template (chat_template.jinja)")
    ends = _end_ids(path, processor.tokenizer)
    return ConversationEncoder(processor.tokenizer, template, token, token_id, grid.size, ends)


def _end_ids(path: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens at which generation stops, from generation_config.json or else the tokenizer."""
    ends = None
    if (path / "generation_config.json").is_file():
        load: Any = GenerationConfig.from_pretrained
        ends = load(path, local_files_only=True).eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise StudentError(
            f"{path}: neither generation_config.json nor tokenizer name an end token"
        )
    return frozenset(ends if isinstance(ends, list) else [ends])


def student_digest(path: Path) -> str:
    """SHA-256 that tells one student from another without reading gigabytes of weights.

    Covers config.json and, of every weight file, its name, size and first megabyte, which holds
    the names and shapes of its tensors.
    """
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as weights:
            digest.update(weights.read(1 << 20))
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """First line of a library's message; the rest is often a page."""
    return str(error).strip().partition("\n")[0]
