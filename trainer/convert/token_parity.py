"""Do the converted tokenizer's ids equal those of the original's way to tokenise?

The original cuts a prompt at `<image>` and tokenises the texts between one by one; the converted
tokenizer takes the prompt whole, `<image>` being a token of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Tokenizer

from ...pipeline.manifest import IMAGE_PLACEHOLDER
from ..frame import content_form, content_of

Encode = Callable[[str], list[int]]

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
