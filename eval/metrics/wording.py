"""Turn an answer into comparable words, in two ways: as LLaVA-Med does, and strictly."""

import re
import unicodedata

_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = int(re.UNICODE)

# Short forms that get their apostrophes back. An answer that lacks exactly one of them is restored.
_SHORT_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
    you're you've
"""


def _restored() -> dict[str, str]:
    table = {
        form[:at] + form[at + 1 :]: form
        for form in _SHORT_FORMS.split()
        for at, letter in enumerate(form)
        if letter == "'"
    }
    # LLaVA-Med's table has this one the wrong way round, and so have the scores it gives.
    return table | {"somebody'd": "somebodyd"}


_RESTORED = _restored()


def llava_med_text(text: str) -> str:
    """Normalise an answer exactly as LLaVA-Med's scorer does, oddities included.

    A punctuation mark that stands next to a blank *anywhere* in the text is deleted everywhere,
    otherwise it becomes a blank (and a digit,digit pattern deletes all of them); at most 32 full
    stops go; then number words become digits, articles go and short forms regain apostrophes.
    """
    spaced = text
    delete_all = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        delete = delete_all or f"{mark} " in text or f" {mark}" in text
        spaced = spaced.replace(mark, "" if delete else " ")
    # The reference passes re.UNICODE (32) where `count` belongs.
    bare = _PERIOD.sub("", spaced, count=_MAX_PERIODS)
    numbered = (_NUMBERS.get(word, word) for word in bare.lower().split())
    words = (_RESTORED.get(word, word) for word in numbered if word not in _ARTICLES)
    return " ".join(words).replace(",", "")


def llava_med_words(text: str) -> list[str]:
    """Return the words of an OPEN answer: lower-cased, normalised twice, as LLaVA-Med does."""
    return llava_med_text(llava_med_text(text.lower())).split()


_WORD = r"""
    (?:(?<![^\W_])-(?=\.?\d))?                        # the minus of -5, not the dash of 5-10
    (?:(?<![^\W_])\.\d+ | \d+(?:[.,]\d+)+ | [^\W_]+(?:'[^\W_]+)*)
"""
_SIGN = r"""
    [+<>=\u00b1\u00d7\u2190-\u2193%\u2030]           # tell answers apart wherever they stand
    | (?<![^\W_])-(?=ve\b)                            # -ve
    | (?<=\()-(?=\))                                  # HER2 (-)
    | (?<=[^\W_])-(?=\s)                              # HER2- positive
    | (?<=[^\W_])\ ?-(?=\s*(?:$|[.,;:)\]]))           # HER2 -
"""
_TOKEN = re.compile(f"{_WORD} | {_SIGN}", re.VERBOSE)
_ONE_SPELLING = str.maketrans(
    {"\u2019": "'", "\u2264": "<=", "\u2265": ">="} | dict.fromkeys("\u2010\u2012\u2013\u2212", "-")
)
_FRAME = " .*\"'"


def strict_words(text: str) -> list[str]:
    """Return the words of an answer under the strict definition.

    Unicode NFKC, lower case, punctuation separates words (decimal points stay), number words
    zero to ten and "none" become digits, articles are dropped unless the answer has no other word.
    A last "a" is no article: "hepatitis A" is not "hepatitis". Signs that change the meaning are
    words too, as in the preparation of data sets (`pipeline.datasets.wording.plain_words`): "HER2+"
    and "HER2 -", "< 5 mm" and "> 5 mm"; the minus of a number belongs to the number.
    """
    plain = unicodedata.normalize("NFKC", text).lower().translate(_ONE_SPELLING)
    if plain.strip(_FRAME) == "-":
        return ["-"]
    tokens = (token.strip() for token in _TOKEN.findall(plain))
    words = [_NUMBERS.get(word, word) for word in tokens]
    bare = [word for word in words[:-1] if word not in _ARTICLES]
    bare += [word for word in words[-1:] if word not in _ARTICLES - {"a"}]
    return bare or words
