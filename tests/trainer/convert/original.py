"""Small random checkpoints in exactly the formats of LLaVA-Med-1.5 and HuatuoGPT-Vision-7B.

Other tests reach this file through the fixture `originals`. Keys, config fields and file layout
are those that the original training code saves under transformers 4.36 and 4.40.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

Form = Literal["safetensors", "bin"]
Place = Literal["inside", "beside", "both", "none"]

TOWER_KEY = "model.vision_tower.vision_tower.vision_model."
VIT = "vit/clip_vit_large_patch14_336"
TEXTS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: ASSISTANT: <|user|>: <|assistant|>:",
    "Is there a fracture of the left rib? Yes. No. Which organ is shown? The lungs, the heart.",
    "Please choose from the following options: [yes, no]. Does the picture contain liver?",
)
_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a made checkpoint; 336 and 14 pixels give the original's 24x24 visual tokens."""

    image_size: int = 56
    patch_size: int = 14
    width: int = 64
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    tower_width: int = 64
    tower_layers: int = 3
    vocabulary: int = 420
    spread: float = 0.08


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """One entry of a tokenizer.model: 1 normal, 2 unknown, 3 control, 6 byte."""

    text: str
    score: float
    kind: int


def make_llava_med(
    folder: Path,
    sizes: Sizes = Sizes(),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    tower: Place = "inside",
    form: Form = "safetensors",
    shards: int = 2,
    texts: Iterable[str] = TEXTS,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a LLaVA-Med-1.5 checkpoint; any text can be tokenised, unknown letters as bytes.

    Args:
        folder: made if need be.
        sizes: of the model.
        seed: of the weights.
        dtype: of the weights.
        tower: `inside`, or `none` as in a checkpoint that was trained with a frozen tower.
        form: of the weight files.
        shards: how many of them; 1 writes no index.
        texts: what the tokenizer learns its words from.
        config: fields of config.json to change; a value of `...` takes one away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces = sentence_pieces(texts, sizes.vocabulary)
    write_tokenizer_model(folder / "tokenizer.model", pieces)
    _write(folder / "tokenizer_config.json", _llama_tokenizer_config())
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    _write(folder / "special_tokens_map.json", specials)
    text = _text_fields(sizes, len(pieces)) | {"sliding_window": None, "rms_norm_eps": 1e-05}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "rope_theta": 1000000.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language = MistralForCausalLM(_quiet(MistralConfig)(**text))
        state = _state(language.state_dict(), sizes, inside=tower in ("inside", "both"))
    _write_weights(folder, state, dtype, form, shards)
    values = {
        "architectures": ["LlavaMistralForCausalLM"],
        "model_type": "llava_mistral",
        **text,
        **_multimodal_fields("openai/clip-vit-large-patch14-336", sizes, dtype),
        "tokenizer_model_max_length": 2048,
        "transformers_version": "4.36.2",
    }
    _write(folder / "config.json", _changed(values, config))
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    _write(folder / "generation_config.json", {**generation, "transformers_version": "4.36.2"})
    return folder


def make_huatuo(
    folder: Path,
    sizes: Sizes = Sizes(),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    tower: Place = "both",
    form: Form = "safetensors",
    shards: int = 2,
    texts: Iterable[str] = TEXTS,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a HuatuoGPT-Vision-7B checkpoint; `beside` puts the tower into `vit/...` alone.

    The vocabulary is larger than the tokenizer, as Qwen2's is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    used = _write_qwen_tokenizer(folder, texts, sizes.vocabulary)
    text = _text_fields(sizes, used + 24) | {"rms_norm_eps": 1e-06, "rope_theta": 1000000.0}
    text |= {"use_sliding_window": False, "sliding_window": 131072}
    text |= {"max_window_layers": sizes.layers, "bos_token_id": used - 3, "eos_token_id": used - 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language = Qwen2ForCausalLM(_quiet(Qwen2Config)(**text))
        state = _state(language.state_dict(), sizes, inside=tower in ("inside", "both"))
        if tower in ("beside", "both"):
            make_clip(folder / VIT, sizes, seed=seed + 1)
    _write_weights(folder, state, dtype, form, shards)
    values = {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        **text,
        **_multimodal_fields(VIT, sizes, dtype),
        "image_grid_pinpoints": None,
        "mm_patch_merge_type": "flat",
        "tokenizer_model_max_length": 8192,
        "transformers_version": "4.40.0",
    }
    _write(folder / "config.json", _changed(values, config))
    generation: dict[str, Any] = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "repetition_penalty": 1.05,
    }
    generation |= {"bos_token_id": used - 3, "eos_token_id": [used - 1, used - 3]}
    _write(folder / "generation_config.json", {**generation, "transformers_version": "4.40.0"})
    return folder


def make_clip(
    folder: Path,
    sizes: Sizes = Sizes(),
    *,
    seed: int = 1,
    form: Form = "bin",
) -> Path:
    """Write a whole CLIP folder as OpenAI's: both halves, position ids, old preprocessor fields."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": sizes.tower_width,
        "intermediate_size": 2 * sizes.tower_width,
        "num_hidden_layers": sizes.tower_layers,
        "num_attention_heads": sizes.tower_width // 64,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "hidden_act": "quick_gelu",
    }
    values = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 16}
    text = {"model_type": "clip_text_model", "hidden_size": 16}
    _write(folder / "config.json", {**values, "text_config": text, "vision_config": vision})
    images: dict[str, Any] = {
        "crop_size": sizes.image_size,
        "size": sizes.image_size,
        "resample": 3,
    }
    images |= {"image_mean": _MEAN, "image_std": _STD, "resample": 3, "do_normalize": True}
    _write(folder / "preprocessor_config.json", images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = {f"vision_model.{name}": value for name, value in tower_state(sizes).items()}
        state["text_model.embeddings.token_embedding.weight"] = torch.randn(8, 16)
        state["text_projection.weight"] = torch.randn(16, 16)
        state["visual_projection.weight"] = torch.randn(16, sizes.tower_width)
    places = (sizes.image_size // sizes.patch_size) ** 2 + 1
    state["vision_model.embeddings.position_ids"] = torch.arange(places)[None]
    state["logit_scale"] = torch.tensor(4.6)
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tower_config(sizes: Sizes) -> Any:
    """The tower's configuration, heads of 64 as in every CLIP."""
    return _quiet(CLIPVisionConfig)(
        hidden_size=sizes.tower_width,
        intermediate_size=2 * sizes.tower_width,
        num_hidden_layers=sizes.tower_layers,
        num_attention_heads=sizes.tower_width // 64,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_act="quick_gelu",
    )


def tower_state(sizes: Sizes) -> dict[str, Tensor]:
    """Random weights of a tower under CLIP's names, without the `vision_model.` in front."""
    model = CLIPVisionModel(tower_config(sizes))
    for parameter in model.parameters():  # CLIP's own start is too small to tell layers apart
        parameter.data = torch.randn_like(parameter) * 0.05 + (parameter.data.abs().max() == 1)
    return {name.removeprefix("vision_model."): t for name, t in model.state_dict().items()}


def sentence_pieces(texts: Iterable[str], size: int) -> list[SentencePiece]:
    """A byte-pair vocabulary in SentencePiece's order: specials, bytes, joined pieces, letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    joined = list(dict.fromkeys("".join(pair) for pair in merges))
    letters = sorted(token for token in tokenizer.get_vocab() if len(token) == 1)
    pieces = [SentencePiece("<unk>", 0.0, 2), SentencePiece("<s>", 0.0, 3)]
    pieces += [SentencePiece("</s>", 0.0, 3)]
    pieces += [SentencePiece(f"<0x{value:02X}>", 0.0, 6) for value in range(256)]
    ordered = enumerate([*joined, *letters])
    return pieces + [SentencePiece(text, -float(rank), 1) for rank, text in ordered]


def write_tokenizer_model(
    path: Path, pieces: Sequence[SentencePiece], *, kind: int = 2, **rules: int
) -> None:
    """Write a tokenizer.model as SentencePiece does.

    Args:
        path: of the file.
        pieces: the vocabulary.
        kind: 2 for byte pairs, 1 for unigrams.
        rules: `dummy_prefix` and `remove_blanks`, 0 or 1.
    """
    data = b""
    for piece in pieces:
        body = _field(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score)
        data += _field(1, body + _number(3, piece.kind))
    data += _field(2, _number(3, kind) + _number(4, len(pieces)) + _number(35, 1))
    normal = _field(1, b"identity") + _number(3, rules.get("dummy_prefix", 1))
    data += _field(3, normal + _number(4, rules.get("remove_blanks", 0)) + _number(5, 1))
    path.write_bytes(data)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _write_qwen_tokenizer(folder: Path, texts: Iterable[str], size: int) -> int:
    """Write a byte-level tokenizer as Qwen2's folders hold it; return how many ids it uses."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    _write(folder / "vocab.json", model["vocab"])
    pairs = "".join(f"{a} {b}\n" for a, b in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + pairs, encoding="utf-8")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    first = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {text: first + k for k, text in enumerate(specials)}
    _write(folder / "added_tokens.json", added)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {str(k): {"content": text, **flags, "special": True} for text, k in added.items()}
    config: dict[str, Any] = {"added_tokens_decoder": decoder, "tokenizer_class": "Qwen2Tokenizer"}
    config |= {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    _write(folder / "tokenizer_config.json", {**config, "model_max_length": 32768})
    return tokenizer.get_vocab_size()


def _llama_tokenizer_config() -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    specials = {"0": "<unk>", "1": "<s>", "2": "</s>"}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            number: {"content": text, **flags, "special": True} for number, text in specials.items()
        },
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "legacy": True,
        "model_max_length": 2048,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
    }


def _text_fields(sizes: Sizes, vocabulary: int) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": sizes.width,
        "initializer_range": sizes.spread,
        "intermediate_size": 2 * sizes.width,
        "max_position_embeddings": 32768,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.key_heads,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def _multimodal_fields(tower: str, sizes: Sizes, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": sizes.tower_width,
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower,
        "tokenizer_padding_side": "right",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
    }


def _state(language: Mapping[str, Tensor], sizes: Sizes, *, inside: bool) -> dict[str, Tensor]:
    """Tensors of a checkpoint under the original's names, projector at its usual spread."""
    state = dict(language)
    for name, value in language.items():
        if value.ndim == 1:  # norms and biases start equal, which would hide an exchange
            state[name] = value + torch.randn_like(value) * 0.1
    for number, width in ((0, sizes.tower_width), (2, sizes.width)):
        state[f"model.mm_projector.{number}.weight"] = torch.randn(sizes.width, width) * 0.1
        state[f"model.mm_projector.{number}.bias"] = torch.randn(sizes.width) * 0.1
    # Saved by transformers before 4.32.
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(8)
    if inside:
        state |= {TOWER_KEY + name: value for name, value in tower_state(sizes).items()}
    return state


def _write_weights(
    folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype, form: Form, shards: int
) -> None:
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    cast = {name: t.to(dtype).contiguous() for name, t in state.items()}
    names = list(cast)
    cut = -(-len(names) // shards)
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}"
        file = f"{stem}.{suffix}" if shards == 1 else file
        part = {name: cast[name] for name in names[number * cut : (number + 1) * cut]}
        places |= dict.fromkeys(part, file)
        if form == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
    if shards > 1:
        size = sum(t.nbytes for t in cast.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        _write(folder / f"{stem}.{suffix}.index.json", index)


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    merged = {**values, **(changes or {})}
    return {key: value for key, value in merged.items() if value is not ...}


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _quiet(made: Any) -> Any:
    """A class of transformers without its types, which know no old fields."""
    return made
