"""The findings of a report, else its impression; every text here is invented."""

import pytest

from medalign.pipeline.datasets.mimic_cxr import find_section

WHOLE = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ with an invented cough.

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  None.

 FINDINGS:

 The made-up heart is
 of   normal size.

 LUNGS: clear.

 IMPRESSION:

 No invented disease.
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (WHOLE, ("findings", "The made-up heart is of normal size. LUNGS: clear.")),
        ("FINAL REPORT\n IMPRESSION: Clear.\n", ("impression", "Clear.")),
        ("IMPRESSION: Clear.", ("impression", "Clear.")),
        ("FINDINGS:\n\nIMPRESSION:  Clear.", ("impression", "Clear.")),
        ("FINDINGS AND IMPRESSION: Clear.\nCOMPARISON: none", ("findings", "Clear.")),
        ("FINDINGS/IMPRESSION : Clear.", ("findings", "Clear.")),
        ("Findings: Clear.\nImpression: Well.", ("findings", "Clear.")),
        ("FINDING: Clear.", ("findings", "Clear.")),
        ("PORTABLE CHEST FINDINGS: Clear.", ("findings", "Clear.")),
        ("CONCLUSION: Clear.\nRECOMMENDATION: none", ("impression", "Clear.")),
        ("REASON FOR EXAM: cough\n The lungs are clear.", None),
        ("HISTORY: other findings: none", None),
        ("", None),
        ("IMPRESSION: Clear.\nRECOMMENDATION(S): none", ("impression", "Clear.")),
        ("FINDING(S): Clear.\nIMPRESSION(S): Well.", ("findings", "Clear.")),
        ("FINDINGS: Clear.\nSUMMARY: Well.", ("findings", "Clear.")),
        ("IMPRESSION: Clear.\n      DR. ___ ___\n", ("impression", "Clear.")),
        (
            "FINDINGS: Told to\n Dr. ___ by telephone.",
            ("findings", "Told to Dr. ___ by telephone."),
        ),
        ("FINDINGS: Clear. IMPRESSION: Normal.", ("findings", "Clear.")),
        ("COMPARISON: ___ FINDINGS: Clear. RECOMMENDATION: none", ("findings", "Clear.")),
        ("FINDINGS: An impression: clear.", ("findings", "An impression: clear.")),
        ("FINDINGS: Clear.\nStudy: limited.", ("findings", "Clear. Study: limited.")),
        ("FINDINGS: Clear.\nComparison: worse.", ("findings", "Clear. Comparison: worse.")),
        ("Findings: Clear.\nRecommendation: none", ("findings", "Clear.")),
    ],
)
def test_which_section_is_taken(text: str, found: tuple[str, str] | None) -> None:
    assert find_section(text) == found


def test_a_wet_read_before_the_final_report_does_not_count() -> None:
    wet = "WET READ: ___ 4:25 PM\n FINDINGS: preliminary.\n IMPRESSION: preliminary.\n"
    assert find_section(f"{wet}\n      FINAL REPORT\n FINDINGS: final.") == ("findings", "final.")
    assert find_section(f"{wet}\n FINAL REPORT\n IMPRESSION: final.") == ("impression", "final.")


def test_line_ends_of_windows_are_line_ends() -> None:
    wet = "WET READ: ___\n FINDINGS: preliminary.\n FINAL REPORT\n IMPRESSION: final.\n"
    assert find_section(wet.replace("\n", "\r\n")) == ("impression", "final.")


@pytest.mark.parametrize("heading", ["ADDENDUM", "FINAL ADDENDUM", "ADDENDUM:", "ADDENDUM  ___:"])
def test_an_addendum_neither_joins_nor_replaces_the_findings(heading: str) -> None:
    addendum = f" {heading}\n Called by telephone.\n"
    assert find_section(f"FINAL REPORT\n FINDINGS: Clear.\n\n{addendum}") == ("findings", "Clear.")
    more = f"FINAL REPORT\n FINDINGS: Clear.\n{addendum} FINDINGS: Changed.\n"
    assert find_section(more) == ("findings", "Clear.")
    before = f"FINAL REPORT\n{addendum}\n FINDINGS: Clear."
    assert find_section(before) == ("findings", "Clear.")


def test_without_anything_after_the_last_final_report_the_one_before_counts() -> None:
    text = "FINAL REPORT\n FINDINGS: Clear.\n ADDENDUM\n FINAL REPORT\n Signed.\n"
    assert find_section(text) == ("findings", "Clear.")


def test_a_long_report_without_headings_is_read_in_no_time() -> None:
    assert find_section("A B C D E F G " * 20_000) is None
