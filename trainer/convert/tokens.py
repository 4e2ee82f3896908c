"""The tokenizer of a converted model: the original's ids, and a token for the image."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from .added_tokens import add_tokens
from .errors import ConvertError, told_of
from .families import Original
from .json_file import read_object
from .sentencepiece_model import read_fast
from .token_parity import Parity, compare, same_ids

IMAGE_TOKEN: Final = "<image>"
FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_CONFIG: Final = "tokenizer_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokenizer of a converted model.

    Attributes:
        tokenizer: Hugging Face's fast tokenizer, image token included.
        size: ids that it uses; the largest is one less.
        image_id, end_id, pad_id: of the tokens.
        begin_id: of the token in front of every text; None without one.
        files: that it was made of.
        parity: its ids against those of the original's way to tokenise.
        notes: what was changed or chosen.
    """

    tokenizer: Any
    size: int
    image_id: int
    end_id: int
    pad_id: int
    begin_id: int | None
    files: tuple[Path, ...]
    parity: Parity
    notes: tuple[str, ...]


def read_tokens(source: Path, family: Original) -> Tokens:
    """Read the original's tokenizer and add the image token.

    Raises:
        ConvertError: there is no tokenizer, or it lacks a token that the family needs.
    """
    notes: list[str] = []
    used = [source / _CONFIG] if (source / _CONFIG).is_file() else []
    _check_settings(source, notes)
    plain = _read(source, used, notes)
    used.extend(add_tokens(source, plain))
    for token in (family.end_token, family.pad_token):
        if plain.token_to_id(token) is None:
            raise ConvertError(f"the tokenizer of {source} has no token {token!r}")
    if plain.token_to_id(IMAGE_TOKEN) is not None:
        raise ConvertError(
            f"the tokenizer of {source} has a token {IMAGE_TOKEN!r} already, so it is not the "
            f"original's, which cuts the text there"
        )
    whole = Tokenizer.from_str(plain.to_str())
    if _prefix_everywhere(whole):
        notes.append("a blank goes before each text between special tokens, as in the original")
    whole.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)])
    begin = "<s>" if plain.encode("x").ids[0] == plain.token_to_id("<s>") else None
    ids = whole.get_vocab(with_added_tokens=True)
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(
        tokenizer_object=whole,
        bos_token=begin,
        eos_token=family.end_token,
        pad_token=family.pad_token,
        unk_token="<unk>" if plain.token_to_id("<unk>") is not None else None,
        additional_special_tokens=[IMAGE_TOKEN],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    return Tokens(
        tokenizer=tokenizer,
        size=max(ids.values()) + 1,
        image_id=ids[IMAGE_TOKEN],
        end_id=ids[family.end_token],
        pad_id=ids[family.pad_token],
        begin_id=None if begin is None else ids[begin],
        files=tuple(used),
        parity=compare(
            lambda text: plain.encode(text).ids, tokenizer, family.chat_template, IMAGE_TOKEN
        ),
        notes=tuple(notes),
    )


def _check_settings(source: Path, notes: list[str]) -> None:
    """Refuse settings of a slow tokenizer that change the ids; note one that hardly does."""
    path = source / _CONFIG
    values = read_object(path) if path.is_file() else {}
    if not (source / "tokenizer.model").is_file():
        return
    if values.get("add_eos_token") or values.get("add_bos_token") is False:
        raise ConvertError(
            f"{path}: add_bos_token must be true and add_eos_token false, as the original's are"
        )
    if values.get("legacy") is False:
        notes.append(
            "tokenizer_config.json says legacy: false, by which no blank goes behind an end token "
            "within a conversation; here one does"
        )


def _read(source: Path, used: list[Path], notes: list[str]) -> Tokenizer:
    """Read the tokenizer that the original was trained with."""
    model, fast = source / "tokenizer.model", source / "tokenizer.json"
    pair = (source / "vocab.json", source / "merges.txt")
    if model.is_file():
        found = read_fast(model)
        used.append(model)
        if fast.is_file():  # the original was trained with the slow one
            same = "the same ids as" if same_ids(found, _from_json(fast)) else "OTHER ids than"
            notes.append(
                f"tokenizer.json gives {same} tokenizer.model, "
                "which is used, as in the original's training"
            )
        return found
    if fast.is_file():
        used.append(fast)
        return _from_json(fast)
    if all(path.is_file() for path in pair):
        used.extend(pair)
        build: Any = Qwen2Tokenizer
        with told_of(f"{pair[0]}: cannot be read"):
            made: Tokenizer = build(vocab=str(pair[0]), merges=str(pair[1])).backend_tokenizer
        return made
    raise ConvertError(
        f"{source} has no tokenizer: tokenizer.model, tokenizer.json, or vocab.json with merges.txt"
    )


def _from_json(path: Path) -> Tokenizer:
    with told_of(f"{path} cannot be read"):
        return Tokenizer.from_file(str(path))


def _prefix_everywhere(tokenizer: Tokenizer) -> bool:
    """Put SentencePiece's blank before every piece of text; say whether that is a change."""
    state = json.loads(tokenizer.to_str())
    found = state.get("pre_tokenizer") or {}
    if found.get("type") != "Metaspace" or found.get("prepend_scheme") != "first":
        return False
    found["prepend_scheme"] = "always"
    tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(state)).pre_tokenizer
    return True
