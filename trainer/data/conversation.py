"""One manifest record as tokens: which belong to an answer, an image, the question about it."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import jinja2
import numpy as np
import numpy.typing as npt

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record, Turn

ContentForm = Literal["text", "parts", "parts+newline"]
Int64 = npt.NDArray[np.int64]

IGNORED: Final = -100
"""Label of a token that is not learnt, as in transformers."""


class ConversationError(ValueError):
    """A conversation, or a student's chat template, cannot be turned into a training sample."""


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


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        input_ids: [T].
        labels: [T], the token itself on answers, -100 elsewhere.
        cols: per image, [N] positions of its visual tokens.
        rows: per image, [R] positions of the tokens that ask about it: after the last visual
            token of its turn, up to the token that opens the answer.
        cut: tokens at the end that `max_length` removed.
    """

    input_ids: Int64
    labels: Int64
    cols: tuple[Int64, ...]
    rows: tuple[Int64, ...]
    cut: int


@dataclass(eq=False)
class ConversationEncoder:
    """Turns records into tokens with a student's own tokenizer and chat template. Picklable.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        chat_template: Jinja source.
        image_token: what the chat template writes for an image.
        image_token_id: id of a visual token.
        tokens_per_image: N; None when it depends on the image.
        end_ids: tokens that end an answer when the student generates.
        frame: how an image stands in a prompt.

    Raises:
        ConversationError: the tokenizer cannot say where its tokens stand in the text, or the
            template shows neither text nor images.
    """

    tokenizer: Any
    chat_template: str
    image_token: str
    image_token_id: int
    tokens_per_image: int | None
    end_ids: frozenset[int]
    frame: Frame = Frame()
    _content: ContentForm = field(init=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ConversationError("the student's tokenizer has no fast version (tokenizer.json)")
        form = self.frame.content
        if form is None:
            form = content_form(self.tokenizer, self.chat_template, self.image_token)
        if form is None:
            raise ConversationError("the student's chat template shows neither text nor images")
        self._content = form

    def training(
        self, record: Record, max_length: int, sizes: Sequence[int] | None = None
    ) -> Encoded:
        """Encode a whole conversation; every answer is learnt.

        The whole text is tokenised at once, so that its prompt's tokens are those of `prompt`.

        Args:
            record: the conversation.
            max_length: tokens that are kept.
            sizes: visual tokens of each image of the record; may be left out where all images
                have the same number.

        Raises:
            ConversationError: no answer, or no room for an answer within `max_length` tokens.
        """
        sizes = self._sizes(record, len(record.images), sizes)
        if record.conversations[-1].role != "gpt":
            raise ConversationError(f"record {record.id!r} ends without an answer to learn")
        text, answers = self._render(record, record.conversations, sizes)
        ids, starts = self._tokenise(text)
        is_answer = np.zeros(len(ids), dtype=bool)
        for begin, end in answers:
            inside = np.flatnonzero((starts >= begin) & (starts < end))
            ends = np.flatnonzero(np.isin(ids[inside], list(self.end_ids)))
            # What a template writes after the end token (a line break, say) is never generated.
            is_answer[inside[: ends[0] + 1] if len(ends) else inside] = True
        if len(ids) and is_answer[-1] and ids[-1] not in self.end_ids:
            # A template without an end token would teach the student never to stop.
            ids = np.append(ids, self.tokenizer.eos_token_id)
            is_answer = np.append(is_answer, True)
        return self._encoded(record, sizes, ids, is_answer, max_length)

    def prompt(self, record: Record, sizes: Sequence[int] | None = None) -> Encoded:
        """Encode a record's first question, ready for the student to answer it.

        Args:
            record: the conversation.
            sizes: visual tokens of each image of the first question, see `training`.
        """
        sizes = self._sizes(record, images_of_prompt(record), sizes)
        ids, _ = self._tokenise(self._expand(record, self.prompt_text(record), sizes))
        return self._encoded(record, sizes, ids, np.zeros(len(ids), dtype=bool), None)

    def prompt_text(self, record: Record) -> str:
        """Render the prompt as text, image placeholders not expanded."""
        return self._apply(record.conversations[:1], ask=True)

    def _sizes(self, record: Record, images: int, sizes: Sequence[int] | None) -> Sequence[int]:
        if sizes is not None:
            return sizes
        if images and self.tokens_per_image is None:
            raise ConversationError(
                f"record {record.id!r}: how many tokens its images take depends on their shape"
            )
        return [self.tokens_per_image or 0] * images

    def _render(
        self, record: Record, turns: Sequence[Turn], sizes: Sequence[int]
    ) -> tuple[str, list[tuple[int, int]]]:
        """Text with images expanded, and the character span of every answer in it."""
        spans = []
        for index, turn in enumerate(turns):
            if turn.role == "gpt":
                before = self._expand(record, self._apply(turns[:index], ask=True), sizes)
                after = self._expand(record, self._apply(turns[: index + 1], ask=False), sizes)
                if not after.startswith(before):
                    raise ConversationError(
                        "the student's chat template does not extend its own prompt, so answers "
                        f"cannot be told from questions: {before[-40:]!r} against "
                        f"{after[max(0, len(before) - 40) : len(before)]!r}"
                    )
                spans.append((len(before), len(after)))
        return self._expand(record, self._apply(turns, ask=False), sizes), spans

    def _apply(self, turns: Sequence[Turn], *, ask: bool) -> str:
        names = {"human": "user", "gpt": "assistant"}
        messages = [
            {
                "role": names[turn.role],
                "content": content_of(turn.text, self._content, self.image_token),
            }
            for turn in turns
        ]
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                add_generation_prompt=ask,
                tokenize=False,
            )
        except jinja2.TemplateError as error:
            raise ConversationError(f"the student's chat template refuses: {error}") from error
        return text

    def _expand(self, record: Record, text: str, sizes: Sequence[int]) -> str:
        begin, *others = text.split(self.image_token)
        if len(others) > len(sizes):
            images = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in record.conversations)
            raise ConversationError(
                f"record {record.id!r}: the chat template made {len(others)} images of {images}"
            )
        # The last answers of a conversation may lie before its last images.
        return begin + "".join(
            self.frame.around(self.image_token, size) + text
            for text, size in zip(others, sizes, strict=False)
        )

    def _tokenise(self, text: str) -> tuple[Int64, Int64]:
        bos = self.tokenizer.bos_token
        encoded = self.tokenizer(
            text,
            # A template that writes the BOS itself must not get a second one.
            add_special_tokens=not (bos and text.startswith(bos)),
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        if len(ids) and ids[-1] == self.tokenizer.eos_token_id and offsets[-1, 1] == 0:
            # An end token of no width was appended by the tokenizer; no answer ends there.
            ids, offsets = ids[:-1], offsets[:-1]
        return ids, offsets[:, 0]

    def _encoded(
        self,
        record: Record,
        sizes: Sequence[int],
        ids: Int64,
        is_answer: npt.NDArray[np.bool_],
        max_length: int | None,
    ) -> Encoded:
        visual = np.flatnonzero(ids == self.image_token_id)
        if len(visual) != sum(sizes):
            raise ConversationError(
                f"record {record.id!r}: {len(sizes)} images need {sum(sizes)} "
                f"image tokens, the tokenised text has {len(visual)}"
            )
        opens = np.flatnonzero(is_answer & ~np.roll(is_answer, 1))
        length = len(ids)
        if max_length is not None and length > max_length:
            needed = max(int(opens[0]) + 1, int(visual[-1]) + 2 if len(visual) else 0)
            if needed > max_length:
                raise ConversationError(
                    f"record {record.id!r} needs {needed} tokens for its images and the start of "
                    f"its answer, data.max_length is {max_length}"
                )
            length = max_length
        labels = np.where(is_answer, ids, IGNORED)[:length]
        cols = tuple(np.split(visual, np.cumsum(sizes)[:-1])) if sizes else ()
        rows = tuple(self._question_rows(ids, int(c[-1]), visual, opens, length) for c in cols)
        return Encoded(ids[:length], labels, cols, rows, cut=len(ids) - length)

    def _question_rows(
        self, ids: Int64, last: int, visual: Int64, opens: Int64, length: int
    ) -> Int64:
        after = opens[opens > last]
        end = min(int(after[0]), length) if len(after) else length
        begin = int(visual[visual < end][-1]) + 1
        if begin < end - 1 and ids[begin] == self.frame.end_id:
            begin += 1
        return np.arange(begin, end, dtype=np.int64)


def images_of_prompt(record: Record) -> int:
    """How many images stand in a record's first question."""
    return record.conversations[0].text.count(IMAGE_PLACEHOLDER)


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
