"""The tokenizer of a converted model: the original's ids, and a token for the image."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from ...pipeline.manifest import IMAGE_PLACEHOLDER
from ..data.conversation import content_form, content_of
from .checkpoint_families import Original
from .errors import ConvertError, one_line, read_object
from .sentencepiece import read_fast

IMAGE_TOKEN: Final = "<image>"
_LIST: Final = "added_tokens.json"
_CONFIG: Final = "tokenizer_config.json"
_DECODER: Final = "added_tokens_decoder"
_QUESTIONS: Final = (
    "<image>\nWhat is shown?",
    "<image>\n  Two blanks,\ttab, and a line\nbreak ",
    "<image>\nIs there a 3.5 cm mass? Please choose from the following options: [yes, no]",
    "Is it normal?\n<image>",
    "<image><image>\nWhich differs?",
    "<image>Ödem, naïve, 胸部X線, 🫁?",
    "No image at all",
)
_ANSWERS: Final = (
    "Yes",
    " a leading blank",
    "Läsion im rechten Unterlappen.",
    "(1) left\n(2) right",
)

Encode = Callable[[str], list[int]]


def add_tokens(source: Path, tokenizer: Tokenizer) -> tuple[Path, ...]:
    """Add them under the same ids, and return the files that listed them alone.

    Raises:
        ConvertError: a file is damaged, or a token would get another id.
    """
    added = source / _LIST
    used = (added,) if added.is_file() else ()
    listed = {**_of_list(added), **_of_decoder(source / _CONFIG)}
    for number, token in sorted(listed.items()):
        if tokenizer.token_to_id(token.content) is None:
            tokenizer.add_tokens([token])
        if (actual := tokenizer.token_to_id(token.content)) != number:
            raise ConvertError(
                f"{source}: added token {token.content!r} should be id {number} and becomes "
                f"{actual}; the tokenizer's files do not belong together"
            )
    return used


def _of_list(path: Path) -> dict[int, AddedToken]:
    tokens = {}
    for text, number in (read_object(path) if path.is_file() else {}).items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConvertError(f"{path}: the id of {text!r} is {number!r}, expected a whole number")
        tokens[number] = AddedToken(text, normalized=False, special=True)
    return tokens


def _of_decoder(path: Path) -> dict[int, AddedToken]:
    listed = (read_object(path) if path.is_file() else {}).get(_DECODER)
    if listed is None:
        return {}
    if not isinstance(listed, dict):
        raise ConvertError(f"{path}: {_DECODER} is {listed!r}, expected an object of ids")
    tokens = {}
    for number, token in listed.items():
        if not number.isdecimal():
            raise ConvertError(f"{path}: {_DECODER} has an id {number!r}, expected a whole number")
        content = token.get("content") if isinstance(token, Mapping) else None
        if not isinstance(content, str):
            raise ConvertError(
                f"{path}: {_DECODER}, id {number}: expected an object with text under 'content', "
                f"is {token!r}"
            )
        flags = {key: bool(token.get(key)) for key in ("lstrip", "rstrip", "special")}
        tokens[int(number)] = AddedToken(content, normalized=False, **flags)
    return tokens


@dataclass(frozen=True, slots=True)
class Parity:
    """How many prompts got the same ids both ways.

    Attributes:
        prompts: that were compared.
        differing: those that differ, with the ids of the original's way and of ours.
    """

    prompts: int
    differing: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


def chunk_wise(
    encode: Encode, begin_id: int | None, text: str, image: tuple[str, int]
) -> list[int]:
    """Ids as the original makes them: each chunk alone, its begin token kept once.

    Args:
        encode: the original's tokenizer.
        begin_id: of the token that it puts in front of every text.
        text: a prompt with image tokens in place.
        image: text and id of the image token.
    """
    chunks = [encode(chunk) for chunk in text.split(image[0])]
    front = 1 if begin_id is not None and chunks[0][:1] == [begin_id] else 0
    ids = list(chunks[0])
    for chunk in chunks[1:]:
        ids += [image[1], *chunk[front:]]
    return ids


def compare(encode: Encode, tokenizer: Any, template: str, image_token: str) -> Parity:
    """Tokenise prompts and whole conversations both ways.

    Args:
        encode: the original's tokenizer.
        tokenizer: the converted one.
        template: chat template.
        image_token: that the template writes for an image.
    """
    image = image_token, int(tokenizer.convert_tokens_to_ids(image_token))
    form = content_form(tokenizer, template, image_token) or "text"
    talks: list[tuple[str, ...]] = [(question,) for question in _QUESTIONS]
    talks += [(_QUESTIONS[0], answer) for answer in _ANSWERS]
    talks.append((_QUESTIONS[0], "Yes", "And here?", "No", "Sure?"))
    differing = []
    for turns in talks:
        contents = [content_of(turn, form, image_token) for turn in turns]
        text = rendered(tokenizer, template, contents)
        ours = list(tokenizer(text).input_ids)
        theirs = chunk_wise(encode, tokenizer.bos_token_id, text, image)
        if ours != theirs:
            differing.append((text, tuple(theirs), tuple(ours)))
    return Parity(len(talks), tuple(differing))


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same ids for texts without an image."""
    texts = [text.replace(IMAGE_PLACEHOLDER, "") for text in (*_QUESTIONS, *_ANSWERS)]
    return all(one.encode(text).ids == other.encode(text).ids for text in texts)


def rendered(tokenizer: Any, template: str, contents: Sequence[Any]) -> str:
    """Text of turns that alternate, a question first; a last one waits for its answer."""
    roles = ("user", "assistant")
    text: str = tokenizer.apply_chat_template(
        [{"role": roles[k % 2], "content": content} for k, content in enumerate(contents)],
        chat_template=template,
        add_generation_prompt=len(contents) % 2 == 1,
        tokenize=False,
    )
    return text


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
        slow = read_fast(model)
        used.append(model)
        if fast.is_file():  # the original was trained with the slow one
            same = "the same ids as" if same_ids(slow, _from_json(fast)) else "OTHER ids than"
            notes.append(
                f"tokenizer.json gives {same} tokenizer.model, "
                "which is used, as in the original's training"
            )
        return slow
    if fast.is_file():
        used.append(fast)
        return _from_json(fast)
    if all(path.is_file() for path in pair):
        used.extend(pair)
        build: Any = Qwen2Tokenizer
        with one_line(f"{pair[0]}: cannot be read"):
            tokenizer: Tokenizer = build(vocab=str(pair[0]), merges=str(pair[1])).backend_tokenizer
        return tokenizer
    raise ConvertError(
        f"{source} has no tokenizer: tokenizer.model, tokenizer.json, or vocab.json with merges.txt"
    )


def _from_json(path: Path) -> Tokenizer:
    with one_line(f"{path} cannot be read"):
        return Tokenizer.from_file(str(path))


def _prefix_everywhere(tokenizer: Tokenizer) -> bool:
    """Put SentencePiece's blank before every piece of text; say whether that is a change."""
    state = json.loads(tokenizer.to_str())
    before = state.get("pre_tokenizer") or {}
    if before.get("type") != "Metaspace" or before.get("prepend_scheme") != "first":
        return False
    before["prepend_scheme"] = "always"
    tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(state)).pre_tokenizer
    return True
