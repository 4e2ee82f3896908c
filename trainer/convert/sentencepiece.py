"""tokenizer.model, as SentencePiece writes it, turned into a fast tokenizer.

Original LLaVA checkpoints often hold nothing else. The file is a protocol buffer of a few fields,
read here so that no further package is needed.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from .errors import ConvertError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BPE: Final = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_SPACE: Final = "▁"  # SentencePiece writes blanks as this character


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its id is its position."""

    text: str
    score: float
    kind: int


def read_fast(path: Path) -> Tokenizer:
    """Build a fast tokenizer that gives the ids of SentencePiece, `<s>` in front.

    Each text between two special tokens gets the blank in front that SentencePiece puts before a
    whole text: `legacy` behaviour, which original checkpoints were trained with.

    Raises:
        ConvertError: the file is damaged, or of a kind that Mistral does not use.
    """
    try:
        fields = _fields(path.read_bytes())
        pieces = [_piece(data) for number, data in fields if number == 1]
        trainer = dict(_fields(_only(fields, 2)))
        rules = dict(_fields(_only(fields, 3)))
    except (IndexError, ValueError, struct.error) as error:
        raise ConvertError(f"{path} is no whole SentencePiece model; copy it again") from error
    _check(path, pieces, trainer, rules)
    return _build(pieces)


def _check(
    path: Path, pieces: list[Piece], trainer: Mapping[int, Any], rules: Mapping[int, Any]
) -> None:
    problems = {
        "no byte-pair model": trainer.get(3, 1) != _BPE,
        "a normalisation table": bool(rules.get(2)),
        "no blank put before the text": not rules.get(3, 1),
        "blanks removed": bool(rules.get(4, 1)),
        "tokens of the user's own": any(piece.kind == _USER_DEFINED for piece in pieces),
        "no unknown token": not any(piece.kind == _UNKNOWN for piece in pieces),
    }
    if faults := [what for what, is_so in problems.items() if is_so]:
        raise ConvertError(
            f"{path} is not of Mistral's or Llama's kind ({', '.join(faults)}); put the model's "
            "tokenizer.json beside it instead"
        )


def _build(pieces: list[Piece]) -> Tokenizer:
    unknown = next(piece.text for piece in pieces if piece.kind == _UNKNOWN)
    model = models.BPE(
        vocab={piece.text: number for number, piece in enumerate(pieces)},
        merges=_merges(pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=any(piece.kind == _BYTE for piece in pieces),
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = [piece.text for piece in pieces if piece.kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in special]
    )
    begin = tokenizer.token_to_id("<s>")
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", begin)]
        )
    return tokenizer


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Pairs in the order in which SentencePiece joins them: best score of the joined piece first.

    Of one piece's splits the longer left part comes first, as the leftmost of two that overlap.
    """
    known = {piece.text for piece in pieces if piece.kind == _NORMAL}
    splits = [
        (-piece.score, -cut, piece.text)
        for piece in pieces
        if piece.kind == _NORMAL
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in known and piece.text[cut:] in known
    ]
    splits.sort(key=lambda split: split[:2])
    return [(text[:-cut], text[-cut:]) for _, cut, text in splits]


def _piece(data: Any) -> Piece:
    values = dict(_fields(data))
    return Piece(
        text=bytes(values.get(1, b"")).decode(),
        score=struct.unpack("<f", values.get(2, b"\0\0\0\0"))[0],
        kind=values.get(3, _NORMAL),
    )


def _only(fields: list[tuple[int, Any]], number: int) -> bytes:
    return b"".join(data for field, data in fields if field == number)


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """Number and value of every field of a protocol buffer."""
    fields: list[tuple[int, Any]] = []
    start = 0
    while start < len(data):
        key, start = _varint(data, start)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, start = _varint(data, start)
            fields.append((number, value))
            continue
        if kind == _BYTES:
            size, start = _varint(data, start)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"field of kind {kind}")
        if start + size > len(data):
            raise ValueError("cut short")
        fields.append((number, data[start : start + size]))
        start += size
    return fields


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """A number, seven bits a byte, and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        shift, start = shift + 7, start + 1
        if byte < 0x80:
            return value, start
