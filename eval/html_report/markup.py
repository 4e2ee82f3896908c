"""HTML made of elements: what is not markup already is escaped, so no text becomes a tag."""

import html
import re
from collections.abc import Iterable

# NUL, other control characters and halves of surrogate pairs may stand in JSON, not in HTML.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

Value = str | int | float | bool | None


class Markup(str):
    """Text that is HTML; any other text is escaped where it is put into an element."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """Return a text as HTML that shows it, in an element or in a quoted attribute.

    Characters that no HTML file may hold are shown as the replacement character.
    """
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_UNFIT.sub("\N{REPLACEMENT CHARACTER}", text), quote=True))


def tag(name: str, /, *children: str | Iterable[str | None] | None, **attributes: Value) -> Markup:
    """Return an element with an end tag.

    Args:
        name: of the element.
        children: texts, `Markup`, or several of them; None is left out.
        attributes: `data_wrong` is written `data-wrong` and `class_` is written `class`; None and
            False are left out, True stands without a value.
    """
    return Markup(f"{opened(name, **attributes)}{joined(*children)}</{name}>")


def opened(name: str, /, **attributes: Value) -> Markup:
    """Return a start tag, which is all there is of `input` or `meta`."""
    written = (_attribute(key, value) for key, value in attributes.items())
    return Markup(f"<{name}{''.join(written)}>")


def joined(*children: str | Iterable[str | None] | None) -> Markup:
    """Return children one after the other, escaped where they are no markup."""
    parts: list[str] = []
    for child in children:
        several = [child] if child is None or isinstance(child, str) else child
        parts += [escaped(each) for each in several if each is not None]
    return Markup("".join(parts))


def _attribute(key: str, value: Value) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{escaped(f"{value:g}" if isinstance(value, float) else str(value))}"'
