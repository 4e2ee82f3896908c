import pytest

from medalign.eval.html_report.page import environment


def rendered(template: str, content: object) -> str:
    return str(environment().from_string(template).render(content=content))


def test_text_never_becomes_a_tag_and_markup_is_kept() -> None:
    assert rendered("<b>{{ content }}</b>", "1 < 2 & <i>") == "<b>1 &lt; 2 &amp; &lt;i&gt;</b>"
    bold = "{% macro bold() %}<b>{{ content }}</b>{% endmacro %}<p>{{ bold() }}</p>"
    assert rendered(bold, "<") == "<p><b>&lt;</b></p>"


def test_attributes_are_quoted_and_numbers_are_short() -> None:
    assert rendered('<a title="{{ content }}">', '"><script>') == (
        '<a title="&#34;&gt;&lt;script&gt;">'
    )
    assert rendered('<a x="{{ content }}">', 0.5) == '<a x="0.5">'
    assert rendered('<a x="{{ content }}">', 1 / 3) == '<a x="0.333333">'


@pytest.mark.parametrize("unfit", ["\0", "\x1b", "\x85", "\ud800", "\uffff"])
def test_what_no_page_may_hold_is_replaced(unfit: str) -> None:
    shown = rendered("{{ content }}", f"a{unfit}b\n\tc")
    assert shown == "a\N{REPLACEMENT CHARACTER}b\n\tc"
    rendered("{{ content }}", unfit).encode("utf-8")
