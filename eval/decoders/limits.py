"""Check that a decoder fits a student, before any weight is read."""

from collections.abc import Sequence

from ...trainer.students.spec import StudentSpec, read_config
from .damro import check_tower
from .dola import premature_layers
from .pai import boosted_layers
from .settings import Damro, DecodingError, Dola, Pai, Spec, check_family


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
    """Return why a prompt cannot be answered within the student's positions; None if it can.

    The longest possible answer counts, not the actual one: whether a question is answered depends
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
        DecodingError: names the first such prompt and the reason.
    """
    for name, count in zip(ids, tokens, strict=True):
        if reason := lacks_room(count, spec, positions):
            raise DecodingError(f"{spec.name}: prompt {name!r}: {reason}")


def check_fit(spec: Spec, student: StudentSpec) -> None:
    """Refuse a decoder that this student cannot use.

    Raises:
        DecodingError: names what does not fit.
    """
    check_family(spec, student.family.model_type)
    check_length(spec, student.positions)
    if isinstance(spec, Dola):
        premature_layers(spec.layers, student.layers)
    if isinstance(spec, Pai):
        boosted_layers(spec, student.layers)
    if isinstance(spec, Damro) and spec.variant == "published":
        check_tower(spec, read_config(student.path))
        if spec.top_tokens > student.grid.size:
            raise DecodingError(
                f"damro: top_tokens is {spec.top_tokens}, an image of this student has "
                f"{student.grid.size}"
            )
