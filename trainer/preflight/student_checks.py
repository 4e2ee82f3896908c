"""Does the student's folder load, as far as one can tell without its weights?"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

from rich.text import Text
from safetensors import SafetensorError, safe_open

from ..data.conversation import IGNORED, ConversationEncoder, Encoded
from ..machine import counted
from ..student import unloaded_model
from ..students.spec import StudentError, StudentSpec, first_line, read_student
from .data_checks import Lengths
from .finding import Check, Status, first

_INDEX = "model.safetensors.index.json"
_BARS = 8
_WIDTH = 30


def read(path: Path, geometry: str) -> tuple[StudentSpec | None, Check]:
    """Read config, processor, chat template and image token."""
    try:
        spec = read_student(path, geometry)
    except StudentError as error:
        return None, Check("student", "failed", str(error), "see the README for what students are")
    token = spec.encoder.tokenizer.convert_ids_to_tokens(spec.encoder.image_token_id)
    text = (
        f"{path}: {spec.family.model_type}, {spec.layers} layers, {spec.sight}, image token "
        f"{token!r}"
    )
    return spec, Check("student", "ok", text)


def weights(folder: Path) -> Check:
    """Read the header of every weight file, and compare it with config.json; loads no tensor."""
    try:
        listed = _listed(folder)
    except (OSError, ValueError, KeyError) as error:
        return Check("weights", "failed", f"{folder / _INDEX}: {error}", "copy the folder again")
    if not listed:
        if list(folder.glob("pytorch_model*.bin")):
            text = f"{folder} has its weights as pytorch_model.bin alone"
            return Check("weights", "warning", text, "save them as safetensors")
        return Check("weights", "failed", f"{folder} holds no weights", "copy *.safetensors there")
    wrong, tensors, numbers = [], 0, 0
    for name, wanted in listed.items():
        try:
            sizes = _numbers(folder / name)
        except (OSError, SafetensorError) as error:
            missing = "is missing" if not (folder / name).is_file() else first_line(error)
            wrong.append(f"{name}: {missing}")
            continue
        wrong += [f"{name}: has no tensor {key}" for key in sorted(wanted - sizes.keys())]
        tensors, numbers = tensors + len(sizes), numbers + sum(sizes.values())
    advice = "copy the folder again"
    if wrong:
        text = f"{counted(len(wrong), 'problem')} in {counted(len(listed), 'weight file')}"
        return Check("weights", "failed", text, advice, first(wrong))
    text = f"{counted(tensors, 'tensor')}, {numbers:,} numbers, in {counted(len(listed), 'file')}"
    needed = sum(parameter.numel() for parameter in unloaded_model(folder).parameters())
    if numbers < needed:
        return Check("weights", "failed", f"{text}; config.json needs {needed:,}", advice)
    return Check("weights", "ok", text)


def _listed(folder: Path) -> dict[str, set[str]]:
    """Weight files, and the tensors that the index promises in each."""
    index = folder / _INDEX
    if not index.is_file():
        return {path.name: set() for path in sorted(folder.glob("*.safetensors"))}
    found: dict[str, set[str]] = {}
    for tensor, name in json.loads(index.read_text())["weight_map"].items():
        found.setdefault(name, set()).add(tensor)
    return dict(sorted(found.items()))


def _numbers(file: Path) -> dict[str, int]:
    """How many numbers each tensor of a file has, by its header."""
    with safe_open(file, "pt") as opened:
        return {key: prod(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118


def lengths(found: Lengths, max_length: int) -> Check:
    """Say what `data.max_length` does to the conversations."""
    seen = counted(found.scanned, "conversation")
    if not len(found.tokens):
        text = f"none of {seen} can be used"
    else:
        quartiles = sorted(found.tokens.tolist())
        middle = quartiles[len(quartiles) // 2]
        text = f"{seen} of {quartiles[0]:,} to {quartiles[-1]:,} tokens, median {middle:,}"
    if found.scanned < found.of:
        text += f" (of {found.of:,})"
    text += f"; data.max_length {max_length:,} cuts {found.cut:,}"
    unusable = [f"{record!r}: {reason}" for record, reason in (*found.too_long, *found.unusable)]
    bars = tuple(histogram(found, max_length))
    if unusable:
        text += f"; {len(found.too_long):,} do not fit at all, {len(found.unusable):,} unusable"
        advice = (
            "raise data.max_length: image tokens are never cut"
            if found.too_long
            else "mend them, or they are skipped"
        )
        status: Status = "warning" if len(found.tokens) else "failed"
        return Check("lengths", status, text, advice, (*bars, *first(unusable)))
    advice = "raise data.max_length, or accept shortened answers" if found.cut else ""
    return Check("lengths", "warning" if found.cut else "ok", text, advice, bars)


def histogram(found: Lengths, max_length: int) -> list[str]:
    """Text bars of lengths, `data.max_length` marked."""
    if not len(found.tokens):
        return []
    low, high = int(found.tokens.min()), int(found.tokens.max())
    step = max(1, -(-(high - low + 1) // _BARS))
    edges = range(low, high + 1, step)
    counts = [int(((found.tokens >= a) & (found.tokens < a + step)).sum()) for a in edges]
    most = max(counts)
    lines = []
    for edge, count in zip(edges, counts, strict=True):
        last = min(edge + step - 1, high)
        bar = "█" * max(bool(count), round(_WIDTH * count / most))
        mark = "  <- data.max_length" if edge <= max_length < edge + step else ""
        lines.append(f"{edge:>6,} to {last:>6,}  {bar:<{_WIDTH}}  {count:,}{mark}")
    return lines


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
    found: list[Piece] = []
    begin = 0
    for place in range(1, len(ids) + 1):
        # Two images in a row are two pieces.
        if place == len(ids) or kinds[place] != kinds[begin] or place in starts:
            found.append(Piece(kinds[begin], _text(kinds[begin], ids[begin:place], encoder)))
            begin = place
    return found


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
