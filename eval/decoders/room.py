"""Whether a prompt and the longest answer to it fit a student's positions."""

from collections.abc import Sequence

from .settings import DecodingError, Spec


def check_length(spec: Spec, positions: int | None) -> None:
    """Refuse an answer that fits behind no prompt at all.

    Args:
        spec: decoder and its settings.
        positions: of the student; None if it names no number.

    Raises:
        DecodingError: names both numbers.
    """
    if positions is not None and spec.max_new_tokens >= positions:
        raise DecodingError(
            f"{spec.name}: max_new_tokens is {spec.max_new_tokens}, this student has {positions} "
            "positions for prompt and answer together"
        )


def lacks_room(tokens: int, spec: Spec, positions: int | None) -> str | None:
    """Say why a prompt cannot be answered within the student's positions; None if it can.

    The longest answer counts, not the one that is given: whether a question is answered depends
    on itself and the settings alone.

    Args:
        tokens: of the prompt, those of its images counted.
        spec: decoder and its settings.
        positions: of the student; None if it names no number.
    """
    if positions is None or tokens + spec.max_new_tokens <= positions:
        return None
    if tokens >= positions:
        return (
            f"its prompt has {tokens} tokens, images included, and this student has {positions} "
            "positions; ask a shorter question"
        )
    return (
        f"its prompt has {tokens} tokens, images included, and max_new_tokens is "
        f"{spec.max_new_tokens}, but this student has {positions} positions; set max_new_tokens to "
        f"{positions - tokens} or less"
    )


def check_prompts(
    tokens: Sequence[int], ids: Sequence[str], spec: Spec, positions: int | None
) -> None:
    """Refuse a batch with a prompt that cannot be answered.

    Args:
        tokens: of each prompt.
        ids: of each prompt.
        spec: decoder and its settings.
        positions: of the student; None if it names no number.

    Raises:
        DecodingError: names the first such prompt and says why.
    """
    for name, count in zip(ids, tokens, strict=True):
        if reason := lacks_room(count, spec, positions):
            raise DecodingError(f"{spec.name}: prompt {name!r}: {reason}")
