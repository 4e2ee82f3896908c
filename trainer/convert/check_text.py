"""Do a student's tokenizer, template, images and generation settings fit its model?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from transformers import GenerationConfig

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record, Turn
from ..conversation import IGNORED, ConversationError
from ..doctor.check import Check, first
from ..students.spec import OWN_CODE, StudentSpec
from .token_parity import compare

_ROOM: Final = 100_000


def check_text(folder: Path, config: Any, spec: StudentSpec) -> Iterator[Check]:
    """Look at everything that turns a conversation into tokens and pixels.

    Args:
        folder: of the student.
        config: of the student.
        spec: of the student.
    """
    yield _tokens(config, spec)
    yield _parity(spec)
    yield _images(spec)
    yield _template(spec)
    yield _generation(folder, config, spec)


def _tokens(config: Any, spec: StudentSpec) -> Check:
    tokenizer, rows = spec.encoder.tokenizer, config.text_config.vocab_size
    token, number = spec.encoder.image_token, spec.encoder.image_token_id
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        text = f"the tokenizer has ids up to {largest}, the embedding {rows} rows"
        return Check("tokenizer", "failed", text, "add rows to embedding and head: convert again")
    if tokenizer.encode(f"a{token}b", add_special_tokens=False).count(number) != 1:
        text = f"{token} in a text does not become id {number}, as config.json has it"
        return Check("tokenizer", "failed", text, "make it a special token of tokenizer.json")
    if tokenizer.pad_token_id is None:
        text = f"image token {token} {number}, but no padding token"
        return Check("tokenizer", "warning", text, "batches are padded with id 0")
    text = f"{len(tokenizer):,} tokens for {rows:,} rows, image {token} {number}"
    return Check(
        "tokenizer", "ok", f"{text}, padding {tokenizer.pad_token} {tokenizer.pad_token_id}"
    )


def _parity(spec: StudentSpec) -> Check:
    """Compare with tokenising the texts around an image one by one, as LLaVA's own code does."""
    tokenizer = spec.encoder.tokenizer
    found = compare(
        lambda text: list(tokenizer(text).input_ids),
        tokenizer,
        spec.encoder.chat_template,
        spec.encoder.image_token,
    )
    same = f"{found.prompts - len(found.differing)} of {found.prompts} prompts have the same ids"
    if not found.differing:
        return Check("token ids", "ok", f"{same} whole and cut at the image, as LLaVA's code does")
    advice = "the model saw others in its own training; convert the original again"
    cases = [repr(text) for text, _, _ in found.differing]
    return Check("token ids", "warning", f"{same} as when cut at the image", advice, first(cases))


def _images(spec: StudentSpec) -> Check:
    square, processor = spec.square, spec.processor
    given = (square.image_size // processor.patch_size) ** 2
    given += processor.num_additional_image_tokens
    given -= processor.vision_feature_select_strategy == "default"
    if given != square.grid.size:
        text = (
            f"the processor writes {given} tokens for an image, the tower gives "
            f"{square.grid.size}: patch_size {processor.patch_size}, num_additional_image_tokens "
            f"{processor.num_additional_image_tokens}, vision_feature_select_strategy "
            f"{processor.vision_feature_select_strategy!r}"
        )
        return Check("images", "failed", text, "mend processor_config.json")
    text = f"{square.image_size} px, {square.grid} visual tokens"
    if square.geometry != "pad":
        advice = "LLaVA-Med and HuatuoGPT-Vision pad to a square: set do_pad if this is one of them"
        return Check("images", "warning", f"{text}, geometry {square.geometry}", advice)
    return Check("images", "ok", f"{text}, padded to a square with the mean colour {square.fill}")


def _template(spec: StudentSpec) -> Check:
    turns = (Turn("human", f"{IMAGE_PLACEHOLDER}\nWhat is shown?"), Turn("gpt", "Lungs"))
    record = Record(
        id="check", images=("x.png",), conversations=turns, answer_type=None, fields={}, line=1
    )
    advice = "mend chat_template.jinja"
    try:
        encoded = spec.encoder.training(record, _ROOM)
        asked = spec.encoder.prompt(record)
    except ConversationError as error:
        return Check("template", "failed", str(error), advice)
    learnt = encoded.labels[encoded.labels != IGNORED]
    if encoded.input_ids[: len(asked.input_ids)].tolist() != asked.input_ids.tolist():
        text = "the tokens of a question are not the beginning of those with its answer"
        return Check("template", "failed", text, advice)
    shown = spec.encoder.tokenizer.decode(learnt.tolist())
    if int(learnt[-1]) not in spec.encoder.end_ids:
        text = f"an answer is learnt as {shown!r}, without a token that ends generation"
        return Check("template", "failed", text, "set eos_token_id in generation_config.json to it")
    return Check("template", "ok", f"an answer is learnt as {shown!r}")


def _generation(folder: Path, config: Any, spec: StudentSpec) -> Check:
    ends = spec.encoder.end_ids
    names = ", ".join(
        f"{spec.encoder.tokenizer.convert_ids_to_tokens(number)} {number}"
        for number in sorted(ends)
    )
    if any(number >= config.text_config.vocab_size for number in ends):
        text = f"generation ends at {names}, which the model cannot say"
        return Check("generation", "failed", text, "mend generation_config.json")
    if not (folder / "generation_config.json").is_file():
        text = f"no generation_config.json; the tokenizer's end token {names} is taken"
        return Check("generation", "warning", text, "other programs may not stop there")
    load: Any = GenerationConfig.from_pretrained
    if load(folder, **OWN_CODE).pad_token_id is None:
        text = f"ends at {names}, no padding token"
        return Check("generation", "warning", text, "set pad_token_id in generation_config.json")
    return Check("generation", "ok", f"ends at {names}")
