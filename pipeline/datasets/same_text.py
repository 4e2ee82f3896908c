"""When two short texts of a data set say the same."""

import re
import unicodedata
from typing import Final, Literal

from .definition import Choice

_WORD: Final = re.compile(r"[^\W_]+")
_SIGN: Final = re.compile(
    r"""[+<>=\u00b1\u00d7\u2190-\u2193%\u2030]  # tell answers apart wherever they stand
    | \.(?=\d)                                  # .5 is not 5
    | (?<![^\W_])-(?=\.?\d|ve\b)               # -5, -ve
    | (?<=\()-(?=\))                            # HER2 (-)
    | (?<=[^\W_])-(?=\s)                        # HER2- positive
    | (?<=[^\W_])\ ?-(?=\s*(?:$|[.,;:)\]]))     # HER2 -""",
    re.VERBOSE,
)
_TOKEN: Final = re.compile(f"{_WORD.pattern}|{_SIGN.pattern}", re.VERBOSE)
_ONE_SPELLING: Final = str.maketrans(
    {"\u2264": "<=", "\u2265": ">=", "\u2010": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-"}
)
_YES_NO: Final = re.compile(r"[\s\-*]*(yes|no)[\s*]*(?:$|[.,;:(\u2013\u2014-])", re.IGNORECASE)


def plain_words(text: str) -> str:
    """Return the words of a text: NFKC, case folded, without punctuation.

    Signs that make another answer of the same words stay, each as a word: "HER2+" and "HER2 -",
    "< 5 mm" and "> 5 mm". A hyphen within a word, and a dash between two, are punctuation. A text
    without any word is returned as it is, since "+" and "-" are different answers.
    """
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_ONE_SPELLING)
    if not _WORD.search(plain):
        return " ".join(plain.split())
    return " ".join(token.strip() for token in _TOKEN.findall(plain))


def leading_yes_no(text: str) -> str | None:
    """Return "Yes" or "No" where a text says so, perhaps with an explanation; else None.

    "- No.", "No (since ...)" and "No, ..." are answers; "No information is given" is none.
    """
    found = _YES_NO.match(text)
    return found[1].capitalize() if found else None


QUESTION: Final = Choice(
    name="question",
    # Our own words: MedAlign's instruction is not published.
    default="Describe the findings of this chest X-ray as a radiologist would report them.",
    values=(),
    help="the instruction in front of every report",
)


def yes_no_type(answer: str) -> Literal["OPEN", "CLOSED"]:
    """Return CLOSED for the answers yes and no, in any case."""
    return "CLOSED" if answer.strip().lower() in ("yes", "no") else "OPEN"
