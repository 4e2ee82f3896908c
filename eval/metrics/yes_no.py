"""Read yes or no out of an answer, strictly and as MedHEval does."""

from typing import Literal

from .wording import strict_words

YesNo = Literal["yes", "no"]


def strict_yes_no(text: str) -> YesNo | None:
    """Return what an answer says: its first word if that is yes or no, else the one that occurs.

    None for an answer with neither word, or with both later on.
    """
    words = strict_words(text)
    verdicts = {"yes", "no"}.intersection(words[:1]) or {"yes", "no"}.intersection(words)
    if len(verdicts) != 1:
        return None
    return "yes" if "yes" in verdicts else "no"


def medheval_yes_no(text: str) -> YesNo | None:
    """Return what an answer says, exactly as MedHEval's judge of closed questions does.

    Up to the first full stop, without commas, split at blanks: a word No, no or not means no;
    anything else means yes ("Not seen" too, whose capital N is none of the three). None for "".
    """
    if not text:
        return None
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def yes_no_reference(text: str) -> YesNo | None:
    """Return the reference if it is the word yes or no and nothing else."""
    words = strict_words(text)
    if words == ["yes"]:
        return "yes"
    return "no" if words == ["no"] else None
