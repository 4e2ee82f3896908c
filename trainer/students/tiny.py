"""A seeded tiny Llava student in the real format: config, safetensors, tokenizer, processor."""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from .templates import VICUNA_SYSTEM, VICUNA_V1

IMAGE_TOKEN = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyStudent:
    """Sizes of a random Llava student.

    Attributes:
        text_model: family of the language model.
        image_size, patch_size: of the CLIP tower, in pixels; 336 and 14 give 24x24 tokens.
        width, layers, heads, key_heads: of the language model.
        tower_width, tower_layers: of the CLIP tower.
        vocabulary: most tokens of the tokenizer.
        spread: standard deviation of the random weights.
        seed: of the weights.
    """

    text_model: Literal["mistral", "qwen2", "llama"] = "mistral"
    image_size: int = 336
    patch_size: int = 14
    width: int = 64
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    tower_width: int = 64
    tower_layers: int = 2
    vocabulary: int = 512
    spread: float = 0.08
    seed: int = 0


DEMO_TEXTS: Final = (
    "Does this chest X-ray show pneumonia? Yes. No. Normal. Abnormal.",
    "What imaging modality was used to take this image? X-ray, CT, MRI, ultrasound, microscopy.",
    "What is the projection of this chest X-ray? posteroanterior (PA), anteroposterior (AP).",
    "Was the image taken in the intensive care unit? Is this a lateral view?",
    "Which organ is shown? Heart, lungs, liver, brain, kidney, spleen. Left or right side?",
    "What kind of structure does the mask outline? Cell nuclei. Is this a radiology image?",
    "Is this an MRI image? What plane is it? Axial, coronal, sagittal slice of the tissue.",
    "Findings: the heart size is within normal limits. No pleural effusion or pneumothorax.",
)
"""What the demo student's tokenizer learns its words from; any other text falls back to bytes."""


def make_demo_student(folder: Path) -> None:
    """Write the student that is called `demo`, unless the folder holds it already."""
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        make_student(partial, DEMO_TEXTS, TinyStudent())
        try:
            partial.rename(folder)
        except OSError:  # another process was quicker; equal arguments give equal weights
            shutil.rmtree(partial)


def make_student(folder: Path, texts: Iterable[str], sizes: TinyStudent) -> None:
    """Write a random student as a Hugging Face folder; equal arguments give equal weights.

    Args:
        folder: made if need be.
        texts: what the tokenizer learns its words from.
        sizes: of the model.
    """
    processor = _processor(texts, sizes)
    config = _config(sizes, processor.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sizes.seed)
        model = LlavaForConditionalGeneration(config)
    text = config.text_config
    generation: Any = GenerationConfig
    model.generation_config = generation(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>", IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([VICUNA_SYSTEM, "USER: ASSISTANT:", *texts], trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
    )


def _processor(texts: Iterable[str], sizes: TinyStudent) -> Any:
    side = sizes.image_size
    images = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    llava: Any = LlavaProcessor
    return llava(
        image_processor=images,
        tokenizer=_tokenizer(texts, sizes.vocabulary),
        patch_size=sizes.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_V1,
        image_token=IMAGE_TOKEN,
    )


def _config(sizes: TinyStudent, tokenizer: Any) -> Any:
    family: dict[str, Any] = {"mistral": MistralConfig, "qwen2": Qwen2Config, "llama": LlamaConfig}
    text = family[sizes.text_model](
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads,
        intermediate_size=2 * sizes.width,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        initializer_range=sizes.spread,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        hidden_size=sizes.tower_width,
        intermediate_size=2 * sizes.tower_width,
        num_hidden_layers=sizes.tower_layers,
        num_attention_heads=4,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
    )
    llava: Any = LlavaConfig
    return llava(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(sizes.image_size // sizes.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        initializer_range=sizes.spread,
        tie_word_embeddings=False,
    )
