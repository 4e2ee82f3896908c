from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from medalign.pipeline.manifest import Record, Turn
from medalign.trainer.data.conversation import ConversationEncoder, ConversationError, Encoded
from medalign.trainer.students.spec import StudentSpec, read_student
from medalign.trainer.students.templates import HUATUO, VICUNA_SYSTEM, VICUNA_V1


@pytest.fixture
def spec(students: Callable[..., Path]) -> StudentSpec:
    return read_student(students())


def record(*turns: str, images: int = 0, name: str = "r") -> Record:
    roles: list[Literal["human", "gpt"]] = ["human", "gpt"]
    return Record(
        id=name,
        images=tuple(f"{k}.png" for k in range(images)),
        conversations=tuple(Turn(roles[k % 2], text) for k, text in enumerate(turns)),
        answer_type=None,
        fields={},
        line=1,
    )


def learnt(spec: StudentSpec, encoded: Encoded) -> str:
    text: str = spec.processor.tokenizer.decode(encoded.input_ids[encoded.labels != -100])
    return text


def read(spec: StudentSpec, encoded: Encoded, positions: Any) -> str:
    text: str = spec.processor.tokenizer.decode(encoded.input_ids[positions])
    return text


def test_only_answers_and_their_end_tokens_are_learnt(spec: StudentSpec) -> None:
    encoded = spec.encoder.training(
        record("<image>\nWhat is it?", "the lungs", "Sure?", "yes", images=1), 512
    )
    assert learnt(spec, encoded) == " the lungs</s> yes</s>"


def test_the_whole_conversation_is_the_template_with_images_in_place(spec: StudentSpec) -> None:
    encoded = spec.encoder.training(record("Look: <image> What is it?", "a rib", images=1), 512)
    text = spec.processor.tokenizer.decode(encoded.input_ids)
    assert text == f"{VICUNA_SYSTEM} USER: Look: {'<image>' * 16} What is it? ASSISTANT: a rib</s>"


def test_a_prompt_is_the_beginning_of_its_training_sample(spec: StudentSpec) -> None:
    one = record("<image>\nWhat is it?", "the left lung", images=1)
    prompt, whole = spec.encoder.prompt(one), spec.encoder.training(one, 512)
    n = len(prompt.input_ids)
    assert np.array_equal(whole.input_ids[:n], prompt.input_ids)
    assert (whole.labels[:n] == -100).all()
    assert (whole.labels[n:] != -100).all()


def test_question_rows_run_from_the_image_to_the_token_that_opens_the_answer(
    spec: StudentSpec,
) -> None:
    encoded = spec.encoder.training(
        record("<image>\nWhat is it?", "a rib", "And <image> this one?", "a lung", images=2), 512
    )
    assert read(spec, encoded, encoded.rows[0]) == "\nWhat is it? ASSISTANT:"
    assert read(spec, encoded, encoded.rows[1]) == " this one? ASSISTANT:"
    for cols in encoded.cols:
        assert (encoded.input_ids[cols] == spec.encoder.image_token_id).all()


def test_two_images_in_one_turn_share_the_question_after_the_last(spec: StudentSpec) -> None:
    encoded = spec.encoder.training(record("<image>\n<image>\nWhich?", "the first", images=2), 512)
    assert np.array_equal(encoded.rows[0], encoded.rows[1])
    assert read(spec, encoded, encoded.rows[0]) == "\nWhich? ASSISTANT:"


def test_tokens_equal_those_of_the_processor(spec: StudentSpec) -> None:
    one = record("<image>\nWhat is it?", images=1)
    text = spec.encoder.prompt_text(one)
    image = Image.fromarray(np.zeros((30, 40, 3), np.uint8))
    wanted = spec.processor(text=text, images=image, return_tensors="pt")["input_ids"][0]
    assert torch.equal(torch.from_numpy(spec.encoder.prompt(one).input_ids), wanted)


def test_a_long_answer_is_cut_and_counted_and_the_image_never(spec: StudentSpec) -> None:
    long = record("<image>\nWhat is it?", "the lungs " * 50, images=1)
    whole = spec.encoder.training(long, 10_000)
    cut = spec.encoder.training(long, 100)
    assert len(cut.input_ids) == 100
    assert cut.cut == len(whole.input_ids) - 100
    assert len(cut.cols[0]) == 16


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(spec: StudentSpec) -> None:
    with pytest.raises(ConversationError, match=r"'r' needs \d+ tokens .* data.max_length is 30"):
        spec.encoder.training(record("<image>\nWhat is it?", "a rib", images=1), 30)


def test_a_conversation_without_an_answer_cannot_be_learnt(spec: StudentSpec) -> None:
    with pytest.raises(ConversationError, match="ends without an answer"):
        spec.encoder.training(record("What is it?"), 100)


def test_a_template_of_parts_gets_parts_and_no_second_line_break(spec: StudentSpec) -> None:
    # The shape of llava-hf's templates: content is a list, images come first.
    template = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}"
        "{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    e = spec.encoder
    encoder = ConversationEncoder(
        e.tokenizer, template, e.image_token, e.image_token_id, 16, e.end_ids
    )
    text = encoder.prompt_text(record("<image>\nWhat is it?", images=1))
    assert text == "USER: <image>\nWhat is it? ASSISTANT:"


def test_a_template_without_an_end_token_gets_one_so_that_answers_end(spec: StudentSpec) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    e = spec.encoder
    encoder = ConversationEncoder(
        e.tokenizer, template, e.image_token, e.image_token_id, 16, e.end_ids
    )
    encoded = encoder.training(record("What is it?", "a rib"), 100)
    assert learnt(spec, encoded) == " a rib </s>"
    assert encoded.input_ids[-1] in e.end_ids


def test_what_a_template_writes_after_the_end_token_is_not_learnt(spec: StudentSpec) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if m.role == 'assistant' %}</s>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    e = spec.encoder
    encoder = ConversationEncoder(
        e.tokenizer, template, e.image_token, e.image_token_id, 16, e.end_ids
    )
    two = encoder.training(record("What is it?", "a rib", "Sure?", "yes"), 100)
    assert learnt(spec, two) == " a rib</s> yes</s>"


def test_a_template_that_raises_is_named(spec: StudentSpec) -> None:
    template = (
        "{% for m in messages %}{% if m.content == 'Sure?' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    e = spec.encoder
    encoder = ConversationEncoder(
        e.tokenizer, template, e.image_token, e.image_token_id, 16, e.end_ids
    )
    with pytest.raises(ConversationError, match="chat template refuses: no"):
        encoder.prompt_text(record("Sure?"))


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (VICUNA_V1, f"{VICUNA_SYSTEM} USER: <image>\nWhat? ASSISTANT:"),
        (HUATUO, f"{VICUNA_SYSTEM} <|user|>: <image>\nWhat? <|assistant|>:"),
    ],
)
def test_the_papers_templates(spec: StudentSpec, template: str, wanted: str) -> None:
    e = spec.encoder
    encoder = ConversationEncoder(
        e.tokenizer, template, e.image_token, e.image_token_id, 16, e.end_ids
    )
    assert encoder.prompt_text(record("<image>\nWhat?", images=1)) == wanted
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    rendered = e.tokenizer.apply_chat_template(
        parts, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert rendered == wanted  # as transformers' own users write messages


def test_a_template_that_rewrites_its_prompt_is_refused(spec: StudentSpec) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    e = spec.encoder
    encoder = ConversationEncoder(
        e.tokenizer, template, e.image_token, e.image_token_id, 16, e.end_ids
    )
    with pytest.raises(ConversationError, match="does not extend its own prompt"):
        encoder.training(record("What?", "a rib"), 100)
