"""A conversation as the student sees it: what its tokens are for, in colour."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from rich.text import Text

from ..data.conversation import IGNORED, ConversationEncoder, Encoded
from ..machine import counted

Kind = Literal["prompt", "image", "learnt", "end"]

_STYLES: Final[dict[Kind, str]] = {
    "prompt": "",
    "image": "cyan",
    "learnt": "bold green",
    "end": "reverse green",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens of one kind.

    Attributes:
        kind: `learnt` tokens enter the loss, and so does an `end` token.
        text: decoded; visual tokens as `<image x576>`.
    """

    kind: Kind
    text: str


def pieces(encoded: Encoded, encoder: ConversationEncoder) -> list[Piece]:
    """Split a conversation by what its tokens are for."""
    ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
    kinds = [_kind(i, label, encoder) for i, label in zip(ids, labels, strict=True)]
    starts = [cols[0] for cols in encoded.cols]
    parts: list[Piece] = []
    begin = 0
    for end in range(1, len(ids) + 1):
        # Two images in a row are two pieces.
        if end == len(ids) or kinds[end] != kinds[begin] or end in starts:
            parts.append(Piece(kinds[begin], _text(kinds[begin], ids[begin:end], encoder)))
            begin = end
    return parts


def in_colour(record: str, encoded: Encoded, encoder: ConversationEncoder) -> Text:
    """Make one line of rich text; line breaks are shown as such."""
    line = Text.assemble((record, "bold"), ": ")
    for piece in pieces(encoded, encoder):
        line.append(piece.text.replace("\n", "⏎"), style=_STYLES[piece.kind])
    if encoded.cut:
        line.append(f" [{counted(encoded.cut, 'token')} cut]", style="red")
    return line


def legend() -> Text:
    """Say what the colours mean."""
    return Text.assemble(
        "what is learnt: ", ("answers", _STYLES["learnt"]), ", ", ("end token", _STYLES["end"]),
        "; not: the rest, ", ("<image>", _STYLES["image"]),
    )  # fmt: skip


def _kind(token: int, label: int, encoder: ConversationEncoder) -> Kind:
    if token == encoder.image_token_id:
        return "image"
    if label == IGNORED:
        return "prompt"
    return "end" if token in encoder.end_ids else "learnt"


def _text(kind: Kind, ids: list[int], encoder: ConversationEncoder) -> str:
    if kind == "image":
        return f"<image x{len(ids)}>"
    tokenizer: Any = encoder.tokenizer
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
