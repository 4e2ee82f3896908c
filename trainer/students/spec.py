"""A student's folder before any weight is read: tokens, patches, pixels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import AutoConfig, GenerationConfig

from ...pipeline.geometry import GeometryName
from ...teacher_cache.schema import PatchGrid
from ..data.conversation import ConversationEncoder, ConversationError
from .families import FAMILIES
from .family import Family, Sight
from .family import StudentError as StudentError
from .family import first_line as first_line
from .square import Square

_STRETCHED: Final = frozenset({"linear", "dynamic", "yarn"})
"""Rotary embeddings that serve more positions than `max_position_embeddings` may name."""


def positions_of(text_config: Any) -> int | None:
    """Return how many tokens prompt and answer may have together, None where the config names none.

    Stretched rotary embeddings count with their factor: some configurations name the positions
    before they were stretched (Vicuna 16k), some those after it. Where one cannot tell, the larger
    number holds, since nothing that may fit should be refused.

    Args:
        text_config: of the language model.
    """
    most = getattr(text_config, "max_position_embeddings", None)
    if most is None:
        return None
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _STRETCHED:
        before = rope.get("original_max_position_embeddings") or most
        most = max(most, int(before * rope.get("factor", 1)))
    return int(most)


OWN_CODE: Final[dict[str, Any]] = {"local_files_only": True, "trust_remote_code": False}
"""How every folder is read: no network, and no code that the folder brings. Without the second key
transformers would ask the user at a terminal, and run that code on a `y`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """What a student's folder holds, weights unread.

    Attributes:
        path: the folder.
        family: which kind of model it is.
        processor: its Hugging Face processor (tokenizer, image processor, chat template).
        encoder: records to tokens.
        sight: images to pixels and grids.
        layers: decoder layers of the language model.
        width: C, hidden size of the language model.
        positions: most tokens of a prompt and its answer together; None if the config names none.
    """

    path: Path
    family: Family
    processor: Any
    encoder: ConversationEncoder
    sight: Sight
    layers: int
    width: int
    positions: int | None

    @property
    def pad_id(self) -> int:
        """Token of the padding, which is never attended to."""
        return self.processor.tokenizer.pad_token_id or 0

    @property
    def square(self) -> Square:
        """How an image becomes the one square that the student sees.

        Raises:
            StudentError: this student sees images at their own shape.
        """
        if not isinstance(self.sight, Square):
            raise StudentError(
                f"{self.path}: a {self.family.model_type} student has no fixed square: {self.sight}"
            )
        return self.sight

    @property
    def grid(self) -> PatchGrid:
        """Visual tokens of every image. Raises StudentError as `square` does."""
        return self.square.grid

    @property
    def image_size(self) -> int:
        """Side of the square in pixels. Raises StudentError as `square` does."""
        return self.square.image_size

    @property
    def geometry(self) -> GeometryName:
        """How an image becomes the square. Raises StudentError as `square` does."""
        return self.square.geometry


def read_student(path: Path, geometry: str = "processor") -> StudentSpec:
    """Read a student's configuration and processor; nothing is fetched from a network.

    Args:
        path: a local Hugging Face folder.
        geometry: `processor`, or the geometry to use in place of the processor's.

    Raises:
        StudentError: no such folder, another kind of model, no image token or chat template, or
            an image processor that medalign cannot follow exactly.
    """
    config = read_config(path)
    family = FAMILIES[config.model_type]
    try:
        # Not AutoProcessor, which drops trust_remote_code where the folder names no class.
        processor = family.processor_class.from_pretrained(path, **OWN_CODE)
    except Exception as error:  # transformers raises what it likes on a file's content
        raise StudentError(f"{path}: cannot read the processor: {first_line(error)}") from error
    sight = family.sight(path, config, processor.image_processor, geometry)
    return StudentSpec(
        path=path,
        family=family,
        processor=processor,
        encoder=_encoder(path, family, config, processor, sight.fixed_grid),
        sight=sight,
        layers=config.text_config.num_hidden_layers,
        width=config.text_config.hidden_size,
        positions=positions_of(config.text_config),
    )


def read_config(path: Path) -> Any:
    """Read and check config.json of a student.

    Raises:
        StudentError: no such folder, or a model that medalign does not know.
    """
    if not path.is_dir():
        raise StudentError(
            f"no student at {path}: a local folder in Hugging Face format is expected"
        )
    if not (path / "config.json").is_file():
        raise StudentError(f"{path} has no config.json, so it is no Hugging Face model")
    try:
        config = AutoConfig.from_pretrained(path, **OWN_CODE)
    except Exception as error:  # the same
        if b'"auto_map"' in (path / "config.json").read_bytes():
            raise StudentError(
                f"{path} brings model code of its own, which medalign never runs; if `medalign "
                "export` wrote this folder, give the run or the adapter that was exported"
            ) from error
        raise StudentError(f"{path}: cannot read config.json: {first_line(error)}") from error
    if config.model_type not in FAMILIES:
        known = ", ".join(f"`{name}`" for name in FAMILIES)
        raise StudentError(
            f"{path} is a {config.model_type!r} model; students are {known} models in Hugging "
            "Face format"
        )
    FAMILIES[config.model_type].check(path, config)
    return config


def _encoder(
    path: Path, family: Family, config: Any, processor: Any, grid: PatchGrid | None
) -> ConversationEncoder:
    placeholder, frame = family.frame(path, config, processor)
    template = processor.chat_template or processor.tokenizer.chat_template
    if not isinstance(template, str):
        raise StudentError(f"{path}: the student has no chat template (chat_template.jinja)")
    ends = _end_ids(path, processor.tokenizer)
    try:
        return ConversationEncoder(
            processor.tokenizer,
            template,
            placeholder,
            config.image_token_id,
            None if grid is None else grid.size,
            ends,
            frame,
        )
    except ConversationError:
        raise
    except Exception as error:  # templates raise what they like
        text = f"{path}: the chat template cannot be read: {first_line(error)}"
        raise StudentError(text) from error


def _end_ids(path: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens at which generation stops, from generation_config.json or else the tokenizer."""
    ends = None
    if (path / "generation_config.json").is_file():
        load: Any = GenerationConfig.from_pretrained
        try:
            ends = load(path, **OWN_CODE).eos_token_id
        except Exception as error:  # the same
            raise StudentError(
                f"{path}: generation_config.json cannot be read: {first_line(error)}"
            ) from error
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise StudentError(
            f"{path}: neither generation_config.json nor tokenizer name an end token"
        )
    listed = ends if isinstance(ends, list) else [ends]
    if not listed or not all(isinstance(number, int) and number >= 0 for number in listed):
        raise StudentError(
            f"{path}: eos_token_id is {ends!r}, expected the id of a token or a list of ids; mend "
            "generation_config.json"
        )
    return frozenset(listed)


def student_digest(path: Path) -> str:
    """SHA-256 that tells one student from another without reading gigabytes of weights.

    Covers config.json and, of every weight file, its name, size and first megabyte, which holds
    the names and shapes of its tensors. Pickled weights are covered too where transformers would
    read them, which is where there is no model*.safetensors; nothing is unpickled.
    """
    digest = hashlib.sha256((path / "config.json").read_bytes())
    weights = sorted(path.glob("*.safetensors"))
    if not any(file.name.startswith("model") for file in weights):
        weights += sorted(path.glob("pytorch_model*.bin"))
    for file in weights:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(1 << 20))
    return digest.hexdigest()
