"""Find the option of a multiple-choice question that an answer means."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from .wording import strict_words

_LETTER = re.compile(
    r"""
    [*_"']*+
    (?:(?:the\s+)?(?:(?:correct|right|best|final)\s+)?(?:answer|option|choice)   # Answer: B
       [\s*_]*+(?:is)?[\s*_]*+[:=]?[\s*_]*+(?:option\s+)?)?
    [(\["'*_]*([a-z])(?:[)\]*_.:]|["'](?!\w)|\s*(?:\n|$))
    """,
    re.VERBOSE | re.IGNORECASE,
)


def llava_med_choice(options: Sequence[str], text: str) -> int | None:
    """Return the option whose spelling is most similar to the text, exactly as LLaVA-Med does.

    The similarity is difflib's ratio, case-sensitive; the first of equals wins; None if all are 0,
    which is what a bare letter such as "B" gets.
    """
    ratios = [SequenceMatcher(None, option, text).ratio() for option in options]
    best = max(ratios, default=0.0)
    return ratios.index(best) if best > 0 else None


def strict_choice(options: Sequence[str], text: str) -> int | None:
    """Return the option that the text names, or None where it names none or several.

    In this order: the text equals one option, as it stands or in its words; it starts with an
    option's letter ("B", "B. CT", "(b) CT", "**B**", "Answer: B", "The answer is B.") and what
    follows does not name another option; the words of exactly one option occur in it in a row,
    where an option inside a longer option that occurs does not count.
    """
    exact = [option.strip() for option in options]
    if exact.count(text.strip()) == 1:
        return exact.index(text.strip())
    named = [strict_words(option) for option in options]
    words = strict_words(text)
    if words in named:
        return named.index(words) if named.count(words) == 1 else None
    lettered = _LETTER.match(text.strip())
    if lettered is None:
        return _mentioned(named, words)
    index = ord(lettered[1].lower()) - ord("a")
    after = _mentioned(named, strict_words(text.strip()[lettered.end() :]))
    return index if index < len(options) and after in (None, index) else None


def _mentioned(named: Sequence[Sequence[str]], words: Sequence[str]) -> int | None:
    text = _spaced(words)
    inside = [index for index, option in enumerate(named) if option and _spaced(option) in text]
    outer = [
        index
        for index in inside
        if not any(
            other != index and _spaced(named[index]) in _spaced(named[other]) for other in inside
        )
    ]
    return outer[0] if len(outer) == 1 else None


def _spaced(words: Sequence[str]) -> str:
    """Return the words between blanks, so that `in` finds whole words only."""
    return f" {' '.join(words)} "
