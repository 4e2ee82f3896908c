"""Tiny random Gemma-3 and Qwen2.5-VL students, made by transformers and saved as it saves them."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from medalign.pipeline.manifest import read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.trainer.data.dataset import Conversations
from medalign.trainer.recipe.sections import LoraSection
from medalign.trainer.student import add_adapter, load_base
from medalign.trainer.students.spec import read_student

TEXTS = (
    "Is this an X-ray? Which organ is shown? Is there a fracture of the left rib? yes no",
    "the lungs no fracture is seen system user assistant model You are a helpful assistant.",
)

GEMMA_TEMPLATE = (  # the shape of google/medgemma's: the model's turns are "model", text is trimmed
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}"
    "{% for item in m['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_TEMPLATE = (  # the shape of Qwen/Qwen2.5-VL-7B-Instruct's
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}<|im_end|>\n"
    "{% else %}{% for item in m['content'] %}{% if item['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in item %}{{ item['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(special: list[str], named: dict[str, str], **roles: str) -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS, trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=inner,
        extra_special_tokens=named,
        padding_side="left",
        **roles,
    )


def save(model: Any, processor: Any, folder: Path, ends: list[int], pad: int) -> Path:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        # transformers starts Gemma's projector at zero; peaked attention shows a wrong head order.
        if "projection_weight" in name or ("language_model" in name and "_proj" in name):
            parameter.data.normal_(std=0.3, generator=generator)
    generation: Any = GenerationConfig
    model.generation_config = generation(eos_token_id=ends, pad_token_id=pad)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_gemma3(folder: Path) -> Path:
    names = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    names += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokens = tokenizer(
        names,
        {"boi_token": names[5], "eoi_token": names[6], "image_token": names[7]},
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    )
    text: Any = Gemma3TextConfig
    vision: Any = SiglipVisionConfig
    gemma: Any = Gemma3Config
    config = gemma(
        text_config=text(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=12,  # shorter than an image, as no real one is
            layer_types=["sliding_attention", "full_attention"] * 2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        ),
        vision_config=vision(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
        ),
        mm_tokens_per_image=16,
        boi_token_index=5,
        eoi_token_index=6,
        image_token_index=7,
    )
    torch.manual_seed(0)
    images: Any = Gemma3ImageProcessorPil
    processor: Any = Gemma3Processor
    return save(
        Gemma3ForConditionalGeneration(config),
        processor(
            image_processor=images(
                size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
            ),
            tokenizer=tokens,
            chat_template=GEMMA_TEMPLATE,
            image_seq_length=16,
        ),
        folder,
        [1, 4],
        0,
    )


def make_qwen(folder: Path) -> Path:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    names += ["<|image_pad|>", "<|video_pad|>"]
    tokens = tokenizer(
        names,
        {"image_token": names[5], "video_token": names[6]},
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    qwen: Any = Qwen2_5_VLConfig
    config = qwen(
        text_config={
            "vocab_size": len(tokens),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        vision_start_token_id=3,
        vision_end_token_id=4,
        image_token_id=5,
        video_token_id=6,
    )
    torch.manual_seed(0)
    size = {"shortest_edge": 6 * 28 * 28, "longest_edge": 20 * 28 * 28}
    images: Any = Qwen2VLImageProcessorPil
    videos: Any = Qwen2VLVideoProcessor
    processor: Any = Qwen2_5_VLProcessor
    return save(
        Qwen2_5_VLForConditionalGeneration(config),
        processor(
            image_processor=images(size=size),
            tokenizer=tokens,
            video_processor=videos(),
            chat_template=QWEN_TEMPLATE,
        ),
        folder,
        [0, 2],
        0,
    )


@pytest.fixture(scope="session")
def family_folder(
    tmp_path_factory: pytest.TempPathFactory, students: Callable[..., Path]
) -> Callable[[str], Path]:
    """Folder of a tiny student of a family, by its `model_type`; made once per session."""
    made: dict[str, Path] = {}
    makers = {"gemma3": make_gemma3, "qwen2_5_vl": make_qwen}

    def folder(family: str) -> Path:
        if family == "llava":
            return students()
        if family not in made:
            made[family] = makers[family](tmp_path_factory.mktemp(family))
        return made[family]

    return folder


CONVERSATIONS = {
    "one image": ("<image>\nIs this an X-ray?", "yes"),
    "two images in one turn": ("Compare <image> with\n<image>. Which organ?", "the lungs"),
    "images in two turns": (
        "<image>\nIs this an X-ray?",
        "yes",
        "And <image> this one?",
        "no fracture is seen",
    ),
    "text after an image": ("<image>\nWhich organ is shown?", "the lungs", "Sure?", "yes"),
    "text alone": ("What is a rib?", "no organ"),
}
"""Every way in which images and turns meet, by record id."""

IMAGES = {
    "one image": [2],
    "two images in one turn": [0, 3],
    "images in two turns": [4, 0],
    "text after an image": [1],
}
"""Numbers of their images; image 0 has another grid than the others, where it follows them."""


@pytest.fixture
def conversations(
    dataset: Callable[..., tuple[Path, Path, Path]],
) -> Callable[..., tuple[Path, Path, Path]]:
    """Manifest of `CONVERSATIONS`, folder of images of different shapes, and a cache of them."""

    def make(**store: Any) -> tuple[Path, Path, Path]:
        lines = []
        for name, turns in CONVERSATIONS.items():
            roles = ("human", "gpt") * len(turns)
            line: dict[str, Any] = {
                "id": name,
                "conversations": [
                    {"from": role, "value": text} for role, text in zip(roles, turns, strict=False)
                ],
            }
            if name in IMAGES:
                line["image"] = [f"{k}.png" for k in IMAGES[name]]
            lines.append(line)
        return dataset(images=6, records=0, extra=lines, **store)

    return make


@pytest.fixture
def samples(
    conversations: Callable[..., tuple[Path, Path, Path]], family_folder: Callable[[str], Path]
) -> Callable[..., Conversations]:
    """Conversations of every kind, with a teacher, as a family's student reads them."""

    def make(family: str, *, ask: bool = False) -> Conversations:
        manifest, images, store = conversations(geometry="stretch" if family == "gemma3" else "pad")
        spec = read_student(family_folder(family))
        cache = TeacherCache.open(store)
        return Conversations(read_manifest(manifest), images, spec, 512, cache, ask=ask)

    return make


@pytest.fixture
def spread() -> Callable[[Any], Any]:
    """Move weights of LoRA and W away from zero, by name, so that every gradient shows."""

    def move(model: Any) -> Any:
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "visual_rotation" in name:
                own = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                parameter.data.normal_(std=0.05, generator=own)
        return model

    return move


@pytest.fixture
def adapted(spread: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """Load a student with LoRA, rotation and projector, the probe at layer 2."""

    def make(folder: Path) -> Any:
        torch.manual_seed(0)
        base = load_base(folder, torch.float32)
        lora = LoraSection(rank=4, dropout=0.0)
        return spread(add_adapter(base, 2, lora, rotation=True, projector=True))

    return make
