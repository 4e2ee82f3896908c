import pytest

from medalign.eval.html_report.markup import Markup, escaped, joined, opened, tag


def test_text_never_becomes_a_tag_and_markup_is_kept() -> None:
    bold = tag("b", "1 < 2")
    assert bold == "<b>1 &lt; 2</b>"
    assert tag("p", bold, " & ", None, ["<i>", bold]) == f"<p>{bold} &amp; &lt;i&gt;{bold}</p>"
    assert isinstance(joined("<", ">"), Markup)
    assert joined("<", bold) == f"&lt;{bold}"


def test_attributes_are_quoted_and_named_as_html_has_them() -> None:
    shown = tag("a", class_="x", data_wrong="", title='"><script>', hidden=True, open=False, x=0.5)
    assert (
        shown == '<a class="x" data-wrong="" title="&quot;&gt;&lt;script&gt;" hidden x="0.5"></a>'
    )
    assert opened("input", name="n", value=None, width=0) == '<input name="n" width="0">'


@pytest.mark.parametrize("unfit", ["\0", "\x1b", "\x85", "\ud800", "\uffff"])
def test_what_no_page_may_hold_is_replaced(unfit: str) -> None:
    assert escaped(f"a{unfit}b\n\tc") == "a\N{REPLACEMENT CHARACTER}b\n\tc"
    escaped(unfit).encode("utf-8")
