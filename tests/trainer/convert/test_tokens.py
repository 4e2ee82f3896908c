"""Ids of the converted tokenizers, against SentencePiece's rules and the original's way."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, LlavaProcessor

from medalign.pipeline.manifest import Record, Turn
from medalign.trainer.convert.checkpoint_families import HUATUO_VISION, LLAVA_MED
from medalign.trainer.convert.convert import Converted
from medalign.trainer.convert.errors import ConvertError
from medalign.trainer.convert.sentencepiece import read_fast
from medalign.trainer.convert.tokenizer import read_tokens
from medalign.trainer.students.spec import read_student
from medalign.trainer.students.templates import VICUNA_SYSTEM

TURNS = [
    ("<image>\nWhich organ is shown?", "The lungs"),
    ("<image>\n[yes, no]: is it 3.5 cm, naïve, 胸部?", " No."),
    ("Is it normal?\n<image>", "Yes"),
    ("<image>\n<image>\nWhich  differs?\t\n", "(1) left\n(2) right"),
    ("<image>\nA?", "B", "C?", "D", "And \U0001fac1?", "E"),
]


def reference_ids(pieces: Sequence[Any], text: str) -> list[int]:
    """SentencePiece's byte pairs, slowly: join the best-scored neighbours until none is known."""
    number = {piece.text: k for k, piece in enumerate(pieces)}
    score = {piece.text: piece.score for piece in pieces if piece.kind == 1}
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [(score.get(a + b), -k) for k, (a, b) in enumerate(pairwise(parts))]
        known = [(found, place) for found, place in pairs if found is not None]
        if not known:
            break
        place = -max(known)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    ids = []
    for part in parts:
        if part in score:
            ids.append(number[part])
        else:
            ids += [number[f"<0x{byte:02X}>"] for byte in part.encode()]
    return ids


@pytest.fixture(scope="module")
def pieces(originals: ModuleType) -> Sequence[Any]:
    found: Sequence[Any] = originals.sentence_pieces(originals.TEXTS, 420)
    return found


def test_a_tokenizer_model_gives_the_ids_of_sentencepiece(
    pieces: Sequence[Any], originals: ModuleType, tmp_path: Path
) -> None:
    originals.write_tokenizer_model(tmp_path / "tokenizer.model", pieces)
    fast = read_fast(tmp_path / "tokenizer.model")
    rng = random.Random(0)
    letters = "abcdeghilnorstu     \n\t.,:?é胸\U0001fac1▁<>/0123"
    words = " ".join(originals.TEXTS).split(" ")
    texts = ["", " ", "  two", "tail  ", "\n", "▁", *originals.TEXTS]
    texts += ["".join(rng.choices(letters, k=rng.randint(1, 30))) for _ in range(300)]
    texts += [" ".join(rng.choices(words, k=8)) for _ in range(100)]
    for text in texts:
        assert fast.encode(text).ids == [1, *reference_ids(pieces, text)], repr(text)
        assert fast.decode(fast.encode(text).ids) == text.replace("▁", " "), repr(text)


def test_special_tokens_in_a_text_are_themselves_and_the_next_text_begins_anew(
    pieces: Sequence[Any], originals: ModuleType, tmp_path: Path
) -> None:
    originals.write_tokenizer_model(tmp_path / "tokenizer.model", pieces)
    ids = read_fast(tmp_path / "tokenizer.model").encode("Yes.</s> USER: a").ids
    rest = reference_ids(pieces, " USER: a")
    assert ids == [1, *reference_ids(pieces, "Yes."), 2, *rest]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"kind": 1}, "no byte-pair model"),
        ({"remove_blanks": 1}, "blanks removed"),
        ({"dummy_prefix": 0}, "no blank put before the text"),
    ],
)
def test_a_tokenizer_model_of_another_kind_is_refused(
    written: dict[str, int],
    told: str,
    pieces: Sequence[Any],
    originals: ModuleType,
    tmp_path: Path,
) -> None:
    originals.write_tokenizer_model(tmp_path / "tokenizer.model", pieces, **written)
    with pytest.raises(ConvertError, match=f"{told}.*put the model's tokenizer.json beside it"):
        read_fast(tmp_path / "tokenizer.model")


def test_a_tokenizer_model_that_is_cut_short_is_refused(
    pieces: Sequence[Any], originals: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.model"
    originals.write_tokenizer_model(path, pieces)
    whole = path.read_bytes()
    for size in (1, 10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(ConvertError, match=r"no whole SentencePiece|not of Mistral's"):
            read_fast(path)


def original_ids(family: str, source: Path, pieces: Sequence[Any], text: str) -> list[list[int]]:
    """Ids of the chunks around the images, each tokenised alone, begin token kept once."""
    chunks = text.split("<image>")
    if family == "llava-med":
        cut = [chunk.split("</s>") for chunk in chunks]
        made = []
        for texts in cut:
            ids = reference_ids(pieces, texts[0])
            for each in texts[1:]:
                ids += [2, *reference_ids(pieces, each)]
            made.append(ids)
        return [[1, *made[0]], *made[1:]]
    plain = Tokenizer.from_file(str(source / "tokenizer.json"))
    return [plain.encode(chunk).ids for chunk in chunks]


def prompt_text(turns: Sequence[str], roles: tuple[str, str], end: str) -> str:
    """A conversation as the original's code writes it, answers ended and a blank after each."""
    text = f"{VICUNA_SYSTEM} "
    for k, turn in enumerate(turns):
        text += f"{roles[k % 2]}: {turn}" + (f"{end} " if k % 2 else " ")
    return text.strip()


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("family", ["llava-med", "huatuo-vision"])
def test_training_and_evaluation_see_the_ids_that_the_original_was_trained_with(
    family: str,
    turns: tuple[str, ...],
    made: Callable[..., Path],
    converted: Callable[..., Path],
    pieces: Sequence[Any],
) -> None:
    source, folder = made(family), converted(family)
    end = "</s>" if family == "llava-med" else "<|endoftext|>"
    roles = ("USER", "ASSISTANT") if family == "llava-med" else ("<|user|>", "<|assistant|>")
    encoder = read_student(folder).encoder
    images = sum(turn.count("<image>") for turn in turns)
    record = Record(
        id="r",
        images=("x.png",) * images,
        conversations=tuple(
            Turn("gpt" if k % 2 else "human", turn) for k, turn in enumerate(turns)
        ),
        answer_type=None,
        fields={},
        line=1,
    )
    asked = f"{prompt_text(turns[:1], roles, end)} {roles[1]}:"
    if turns[0] != turns[0].strip():  # the original strips each message
        asked = f"{VICUNA_SYSTEM} {roles[0]}: {turns[0]} {roles[1]}:"
    for ours, text in (
        (encoder.training(record, 5000).input_ids, prompt_text(turns, roles, end)),
        (encoder.prompt(record).input_ids, asked),
    ):
        first, *rest = original_ids(family, source, pieces, text)
        wanted = list(first)
        for chunk in rest:
            wanted += [encoder.image_token_id] * 16 + chunk
        assert ours.tolist() == wanted


@pytest.mark.parametrize("family", ["llava-med", "huatuo-vision"])
def test_plain_transformers_reads_the_same_tokenizer(
    family: str, converted: Callable[..., Path]
) -> None:
    folder = converted(family)
    texts = [
        "  a<image>\nWhat? b",
        "x</s>y",
        "<|user|>: <image>\nq <|endoftext|>",
        "naïve 胸 \U0001fac1",
    ]
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    llava: Any = LlavaProcessor.from_pretrained
    for tokenizer in (
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
        llava(folder, local_files_only=True).tokenizer,
    ):
        for text in texts:
            assert tokenizer(text).input_ids == own.encode(text).ids


def test_tokens_of_llava_med(converted: Callable[..., Path]) -> None:
    spec = read_student(converted("llava-med"))
    tokenizer = spec.processor.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.pad_token == "<unk>"
    assert spec.encoder.end_ids == {2}


def test_tokens_of_huatuo(converted: Callable[..., Path]) -> None:
    """Qwen's tokenizer ends at <|im_end|>, its model's generation at two tokens, Huatuo at one."""
    spec = read_student(converted("huatuo-vision"))
    tokenizer = spec.processor.tokenizer
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token is None
    assert spec.encoder.end_ids == {tokenizer.convert_tokens_to_ids("<|endoftext|>")}


def test_vocabulary_and_merges_alone_give_the_ids_of_tokenizer_json(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    whole = made("huatuo-vision")
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
        shutil.copy(whole / name, tmp_path / name)
    ours = read_tokens(tmp_path, HUATUO_VISION)
    theirs = read_tokens(whole, HUATUO_VISION)
    assert ours.image_id == theirs.image_id
    for text in ("Which <image>\norgan, naïve? 12 <|endoftext|> <|im_end|>", "  a\n\n b'll"):
        assert ours.tokenizer(text).input_ids == theirs.tokenizer(text).input_ids
    assert not ours.parity.differing


def llama_json(source: Path, scheme: str) -> None:
    """Put a tokenizer.json in the place of tokenizer.model, as newer programs write it."""
    fast = read_fast(source / "tokenizer.model")
    fast.normalizer = None
    fast.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme=scheme, split=False
    )
    fast.save(str(source / "tokenizer.json"))
    (source / "tokenizer.model").unlink()


def test_a_tokenizer_that_puts_the_blank_first_only_is_changed(
    source: Path,
) -> None:
    before = read_tokens(source, LLAVA_MED)
    assert before.parity.prompts == 12
    assert not before.parity.differing
    llama_json(source, "first")
    after = read_tokens(source, LLAVA_MED)
    text = f"{VICUNA_SYSTEM} USER: <image>\nWhat? ASSISTANT:"
    assert after.tokenizer(text).input_ids == before.tokenizer(text).input_ids
    assert any("a blank goes before each text" in note for note in after.notes)
    assert not after.parity.differing


def test_tokenizer_model_counts_where_both_are_and_they_are_compared(source: Path) -> None:
    fast = read_fast(source / "tokenizer.model")
    fast.save(str(source / "tokenizer.json"))
    tokens = read_tokens(source, LLAVA_MED)
    assert any("gives the same ids as tokenizer.model" in note for note in tokens.notes)
    assert [path.name for path in tokens.files] == ["tokenizer_config.json", "tokenizer.model"]
    fast.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    fast.normalizer = None
    fast.save(str(source / "tokenizer.json"))
    other = read_tokens(source, LLAVA_MED)
    assert any("gives OTHER ids than tokenizer.model" in note for note in other.notes)


def test_added_tokens_must_have_the_ids_that_the_files_say(source: Path) -> None:
    path = source / "added_tokens.json"
    path.write_text(json.dumps({"<im_patch>": 420}))
    tokens = read_tokens(source, LLAVA_MED)
    assert tokens.tokenizer.convert_tokens_to_ids("<im_patch>") == 420
    assert tokens.image_id == 421
    path.write_text(json.dumps({"<im_patch>": 500}))
    with pytest.raises(ConvertError, match=r"'<im_patch>' should be id 500 and becomes 420"):
        read_tokens(source, LLAVA_MED)


def test_a_checkpoint_without_a_tokenizer_is_refused(
    source: Path, converts: Callable[..., Converted], tmp_path: Path
) -> None:
    (source / "tokenizer.model").unlink()
    with pytest.raises(ConvertError, match=r"has no tokenizer: tokenizer.model, tokenizer.json"):
        converts(source, tmp_path / "out", "llava-med")


def test_a_tokenizer_without_the_end_token_is_refused(source: Path) -> None:
    with pytest.raises(ConvertError, match=r"has no token '<\|endoftext\|>'"):
        read_tokens(source, HUATUO_VISION)


def test_settings_that_change_the_ids_are_refused_or_noted(source: Path) -> None:
    path = source / "tokenizer_config.json"
    values = json.loads(path.read_text())
    for change in ({"add_eos_token": True}, {"add_bos_token": False}):
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(ConvertError, match="add_bos_token must be true and add_eos_token"):
            read_tokens(source, LLAVA_MED)
    path.write_text(json.dumps({**values, "legacy": False}))
    assert any("legacy: false" in note for note in read_tokens(source, LLAVA_MED).notes)
