"""Do a student's tokenizer, template, images and generation settings fit its model?"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from transformers import GenerationConfig

from ...pipeline.hygiene.finding import Check, first, guarded
from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record, Turn
from ..convert.errors import read_object
from ..convert.tokenizer import compare, rendered
from ..data.conversation import IGNORED, ConversationError, content_form, content_of
from ..students.spec import OWN_CODE, StudentSpec

_ROOM: Final = 100_000
_SOME_TOKENS: Final = 4
"""Visual tokens of the image, where they depend on an image's shape."""
_CLASS: Final = "LlavaProcessor"
_NAMING: Final = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Where transformers' AutoProcessor looks for the name of the class."""
_QUESTIONS: Final = (f"{IMAGE_PLACEHOLDER}\nWhat is shown?", "And there?")
_ANSWERS: Final = ("Lungs", "Heart")


def check_text(folder: Path, config: Any, spec: StudentSpec) -> Iterator[Check]:
    """Look at everything that turns a conversation into tokens and pixels.

    Args:
        folder: of the student.
        config: of the student.
        spec: of the student.
    """
    looks = {"tokenizer": partial(_tokens, config, spec)}
    if config.model_type == "llava":  # the two that LLaVA's own code decides
        looks |= {"token ids": partial(_parity, spec), "images": partial(_images, folder, spec)}
    looks["template"] = partial(_template, spec)
    looks["generation"] = partial(_generation, folder, config, spec)
    for name, look in looks.items():
        yield from guarded(name, look, "mend or copy the file that is at fault")


def _tokens(config: Any, spec: StudentSpec) -> Check:
    tokenizer, rows = spec.encoder.tokenizer, config.text_config.vocab_size
    token = spec.encoder.frame.visual or spec.encoder.image_token
    number = spec.encoder.image_token_id
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
    parity = compare(
        lambda text: list(tokenizer(text).input_ids),
        tokenizer,
        spec.encoder.chat_template,
        spec.encoder.image_token,
    )
    same = f"{parity.prompts - len(parity.differing)} of {parity.prompts} prompts have the same ids"
    if not parity.differing:
        return Check("token ids", "ok", f"{same} whole and cut at the image, as LLaVA's code does")
    advice = "the model saw others in its own training; convert the original again"
    cases = [repr(text) for text, _, _ in parity.differing]
    return Check("token ids", "warning", f"{same} as when cut at the image", advice, first(cases))


def _images(folder: Path, spec: StudentSpec) -> Check:
    square, processor = spec.square, spec.processor
    for key, least in (("patch_size", 1), ("num_additional_image_tokens", 0)):
        number = getattr(processor, key)
        if not isinstance(number, int) or number < least:
            text = f"{key} is {number!r}, expected a whole number from {least}"
            return Check("images", "failed", text, "mend processor_config.json")
    tokens = (square.image_size // processor.patch_size) ** 2
    tokens += processor.num_additional_image_tokens
    tokens -= processor.vision_feature_select_strategy == "default"
    if tokens != square.grid.size:
        text = (
            f"the processor writes {tokens} tokens for an image, the tower gives "
            f"{square.grid.size}: patch_size {processor.patch_size}, num_additional_image_tokens "
            f"{processor.num_additional_image_tokens}, vision_feature_select_strategy "
            f"{processor.vision_feature_select_strategy!r}"
        )
        return Check("images", "failed", text, "mend processor_config.json")
    text = f"{square.image_size} px, {square.grid} visual tokens"
    if named := _other_class(folder):
        advice = f"other programs would take that one: name {_CLASS}"
        return Check("images", "warning", f"{text}; {named}", advice)
    if square.geometry != "pad":
        advice = "LLaVA-Med and HuatuoGPT-Vision pad to a square: set do_pad if this is one of them"
        return Check("images", "warning", f"{text}, geometry {square.geometry}", advice)
    return Check("images", "ok", f"{text}, padded to a square with the mean colour {square.fill}")


def _other_class(folder: Path) -> str:
    for name in _NAMING:
        path = folder / name
        named = read_object(path).get("processor_class") if path.is_file() else None
        if named not in (None, _CLASS):
            return f"{name} names the class {named!r}"
    return ""


def _template(spec: StudentSpec) -> Check:
    turns = (Turn("human", _QUESTIONS[0]), Turn("gpt", _ANSWERS[0]))
    record = Record(
        id="check", images=("x.png",), conversations=turns, answer_type=None, fields={}, line=1
    )
    advice = "mend chat_template.jinja"
    sizes = [spec.encoder.tokens_per_image or _SOME_TOKENS]
    try:
        encoded = spec.encoder.training(record, _ROOM, sizes)
        prompt = spec.encoder.prompt(record, sizes).input_ids.tolist()
    except ConversationError as error:
        return Check("template", "failed", str(error), advice)
    learnt = encoded.labels[encoded.labels != IGNORED]
    if encoded.input_ids[: len(prompt)].tolist() != prompt:
        text = "the tokens of a question are not the beginning of those with its answer"
        return Check("template", "failed", text, advice)
    answer = spec.encoder.tokenizer.decode(learnt.tolist())
    if int(learnt[-1]) not in spec.encoder.end_ids:
        text = f"an answer is learnt as {answer!r}, without a token that ends generation"
        return Check("template", "failed", text, "set eos_token_id in generation_config.json to it")
    if unended := _unended(spec):
        text = f"the template writes no end token behind an answer: {unended!r}"
        advice = (
            "medalign adds it to the last answer alone, other programs to none: mend the template"
        )
        return Check("template", "warning", text, advice)
    return Check("template", "ok", f"an answer is learnt as {answer!r}")


def _unended(spec: StudentSpec) -> str:
    """The first answer, and what follows it, without an end token; empty when all have one."""
    encoder, tokenizer = spec.encoder, spec.encoder.tokenizer
    template, token = encoder.chat_template, encoder.image_token
    turns = (_QUESTIONS[0], _ANSWERS[0], _QUESTIONS[1], _ANSWERS[1])
    form = encoder.frame.content or content_form(tokenizer, template, token) or "text"
    text = rendered(tokenizer, template, [content_of(turn, form, token) for turn in turns])
    if not all(part in text for part in (*_ANSWERS, _QUESTIONS[1])):
        return ""  # a template that changes words: what follows an answer cannot be told
    first_end, last_end = (text.index(answer) + len(answer) for answer in _ANSWERS)
    for begin, end in ((first_end, text.index(_QUESTIONS[1])), (last_end, len(text))):
        ids = tokenizer.encode(text[begin:end], add_special_tokens=False)
        if encoder.end_ids.isdisjoint(ids):
            return text[begin - len(_ANSWERS[0]) : end]
    return ""


def _generation(folder: Path, config: Any, spec: StudentSpec) -> Check:
    ends = spec.encoder.end_ids
    if beyond := sorted(number for number in ends if number >= config.text_config.vocab_size):
        text = f"generation ends at {', '.join(map(str, beyond))}, which the model cannot say"
        return Check("generation", "failed", text, "mend generation_config.json")
    names = ", ".join(
        f"{spec.encoder.tokenizer.convert_ids_to_tokens(number)} {number}"
        for number in sorted(ends)
    )
    if not (folder / "generation_config.json").is_file():
        text = f"no generation_config.json; the tokenizer's end token {names} is taken"
        return Check("generation", "warning", text, "other programs may not stop there")
    load: Any = GenerationConfig.from_pretrained
    if load(folder, **OWN_CODE).pad_token_id is None:
        text = f"ends at {names}, no padding token"
        return Check("generation", "warning", text, "set pad_token_id in generation_config.json")
    return Check("generation", "ok", f"ends at {names}")
