"""When two short texts of a data set say the same."""

import re
import unicodedata
from typing import Final

_WORD = re.compile(r"[^\W_]+")
_YES_NO: Final = re.compile(r"[\s\-*]*(yes|no)\s*(?:$|[.,;:(\u2013\u2014-])", re.IGNORECASE)


def plain_words(text: str) -> str:
    """Return the words of a text: NFKC, case folded, without punctuation.

    A text without any word is returned as it is, since "+" and "-" are different answers.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(plain)) or " ".join(plain.split())


def leading_yes_no(text: str) -> str | None:
    """Return "Yes" or "No" where a text says so, perhaps with an explanation; else None.

    "- No.", "No (since ...)" and "No, ..." are answers; "No information is given" is none.
    """
    found = _YES_NO.match(text)
    return found[1].capitalize() if found else None
