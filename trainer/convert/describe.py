"""What a converted folder holds beside its weights: config, processor, template, generation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ...runtime.files import write_durably
from ..export.card import copy_terms, front_matter
from .checkpoint_families import Original
from .checkpoint_weights import Weights
from .errors import ConvertError, one_line
from .model_config import Settings
from .tensor_plan import SOURCE_EMBEDDING, SOURCE_HEAD
from .tokenizer import IMAGE_TOKEN, Tokens
from .vision_tower import Tower

_CLASS_TOKEN: Final = 1


def rows_to_add(weights: Weights, settings: Settings, tokens: Tokens) -> int:
    """Rows that embedding and head lack for the tokenizer's ids.

    A vocabulary that is larger than the tokenizer, as Qwen's, has a row for the image token.

    Raises:
        ConvertError: embedding and config.json do not agree.
    """
    size = int(settings.text["vocab_size"])
    embedding = weights.tensors.get(SOURCE_EMBEDDING)
    if embedding is not None and embedding.shape[:1] != (size,):
        rows = next(iter(embedding.shape), 0)
        raise ConvertError(f"{settings.path}: vocab_size is {size}, the embedding has {rows} rows")
    if tokens.image_id > size:
        raise ConvertError(
            f"{settings.path}: the tokenizer has {tokens.image_id} tokens, the model's vocabulary "
            f"{size}; the files do not belong together"
        )
    return max(0, tokens.size - size)


def llava_config(
    family: Original, settings: Settings, weights: Weights, tower: Tower, tokens: Tokens
) -> Any:
    """Build the configuration of the converted model.

    Raises:
        ConvertError: the text model's or the tower's settings contradict each other.
    """
    tied = settings.tied
    text = dict(settings.text)
    text["vocab_size"] = int(text["vocab_size"]) + rows_to_add(weights, settings, tokens)
    layers = tower.config.num_hidden_layers
    if not -layers - 1 <= settings.layer <= layers:
        raise ConvertError(
            f"{settings.path}: mm_vision_select_layer is {settings.layer}, the vision tower has "
            f"{layers} layers"
        )
    side = tower.config.image_size // tower.config.patch_size
    llava: Any = LlavaConfig
    with one_line(settings.path):
        return llava(
            text_config=family.text_config(
                **text,
                eos_token_id=tokens.end_id,
                pad_token_id=tokens.pad_id,
                tie_word_embeddings=SOURCE_HEAD not in weights.tensors if tied is None else tied,
            ),
            vision_config=tower.config,
            image_token_index=tokens.image_id,
            image_seq_length=side * side,
            vision_feature_layer=settings.layer,
            vision_feature_select_strategy="default",
            projector_hidden_act="gelu",
        )


def write_description(
    folder: Path, config: Any, settings: Settings, tower: Tower, tokens: Tokens, family: Original
) -> None:
    """Write everything but weights and report.

    Args:
        folder: to write into.
        config: of the model, its dtype set.
        settings: of the original.
        tower: the vision tower.
        tokens: the tokenizer.
        family: of the original.
    """
    values = json.loads(config.to_json_string())
    values["architectures"] = ["LlavaForConditionalGeneration"]
    write_durably(folder / "config.json", as_json(values))
    _processor(config, settings, tower, tokens, family).save_pretrained(folder)
    generation: Any = GenerationConfig
    generation(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=tokens.end_id,
        pad_token_id=tokens.pad_id,
    ).save_pretrained(folder)


def _processor(
    config: Any, settings: Settings, tower: Tower, tokens: Tokens, family: Original
) -> Any:
    side = tower.config.image_size
    images = LlavaImageProcessorPil(
        do_pad=settings.pads,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(tower.mean),
        image_std=list(tower.std),
    )
    llava: Any = LlavaProcessor
    return llava(
        image_processor=images,
        tokenizer=tokens.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=_CLASS_TOKEN,
        chat_template=family.chat_template,
        image_token=IMAGE_TOKEN,
    )


def as_json(value: Any) -> bytes:
    """JSON as every file of a converted folder has it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16`, as config.json writes it."""
    return str(dtype).removeprefix("torch.")


def write_card(folder: Path, source: Path, report: Mapping[str, Any]) -> None:
    """Say in README.md what the folder was made of, under whose licence, and copy licence files.

    Args:
        folder: to write into.
        source: the checkpoint.
        report: of the conversion.
    """
    head = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    original, keys = front_matter(source), ("license", "license_name", "license_link", "base_model")
    head |= {key: original[key] for key in keys if isinstance(original.get(key), str)}
    state = yaml.safe_dump(head, sort_keys=False)
    text = (
        f"---\n{state}---\n\n# {report['title']}, converted\n\n"
        f"The checkpoint `{report['source']}` as a Hugging Face Llava folder, made by "
        f"`medalign student convert --family {report['family']}`: no number was trained or tuned. "
        "`conversion.json` lists every file and tensor it was made of. The licence of the original "
        "binds it.\n\nFor research. It is no medical device.\n"
    )
    copy_terms(source, folder)
    write_durably(folder / "README.md", text.encode())
