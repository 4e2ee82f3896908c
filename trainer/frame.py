"""How an image stands in a prompt, and in what form a chat template takes it."""

import contextlib
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..pipeline.manifest import IMAGE_PLACEHOLDER

ContentForm = Literal["text", "parts", "parts+newline"]


@dataclass(frozen=True, slots=True)
class Frame:
    """How an image stands in a prompt, beside the placeholder that the chat template writes.

    Attributes:
        visual: the token that is repeated, one for each visual token; None: the placeholder.
        before, after: text before the first and after the last of them, in the placeholder's
            place.
        end_id: special token behind the visual tokens; it is no part of the question.
        content: what the template takes, see `content_of`; None finds it out.
    """

    visual: str | None = None
    before: str = ""
    after: str = ""
    end_id: int | None = None
    content: ContentForm | None = None

    def around(self, placeholder: str, size: int) -> str:
        """Text of an image of `size` visual tokens, in the place of a placeholder."""
        return self.before + (self.visual or placeholder) * size + self.after


PLAIN: Final = Frame()
"""An image is its placeholder, once for each visual token."""


def content_of(text: str, form: ContentForm, placeholder: str) -> Any:
    """A turn's text as the content of a message.

    Args:
        text: with <image> in place.
        form: `text` with placeholders in place, or a list of `parts`; `parts+newline` leaves out
            the line break that LLaVA's data has behind an image.
        placeholder: what stands for an image in `text` form.
    """
    if form == "text":
        return text.replace(IMAGE_PLACEHOLDER, placeholder)
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
            if form == "parts+newline":
                piece = piece.removeprefix("\n")
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def content_form(tokenizer: Any, chat_template: str, placeholder: str) -> ContentForm | None:
    """Find out whether a template takes text or parts; None when it shows neither."""
    probe = "medalign probe"

    def render(content: Any) -> str:
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return text

    # Templates raise what they like on content of a form that they do not know.
    with contextlib.suppress(Exception):
        text = render(probe)
        if text.count(probe) == 1 and "'type'" not in text:
            return "text"
    text = render([{"type": "image"}, {"type": "text", "text": probe}])
    if probe not in text or placeholder not in text:
        return None
    # A template that writes the line break itself must not get a second one.
    return "parts+newline" if f"{placeholder}\n{probe}" in text else "parts"
