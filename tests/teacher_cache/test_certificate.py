import json
import math
from typing import Any

import pytest

from medalign.teacher_cache.certificate import (
    Certificate,
    Deviation,
    Skipped,
    Tolerance,
    floored,
    read_certificate,
)
from medalign.teacher_cache.schema import TeacherCacheError

TOLERANCE = Tolerance(cosine=0.99, gram=0.02, attention=0.1)
FOUND = Deviation(cosine=0.995, gram=0.01, attention=1e-4, attention_share=0.05)
CERTIFICATE = Certificate(
    rows=(3, 1),
    seed=7,
    skipped=(Skipped(row=2, path="a.png", reason="no such file"),),
    deviation=FOUND,
    worst_row=3,
    worst_path="b.png",
    tolerance=TOLERANCE,
    device="cpu",
    dtype="float32",
    versions={"torch": "2"},
    date="2026-01-02T03:04:05+00:00",
)
FOUND_JSON = CERTIFICATE.to_json()["deviation"]


def test_a_certificate_survives_json() -> None:
    assert read_certificate(json.loads(json.dumps(CERTIFICATE.to_json()))) == CERTIFICATE
    assert read_certificate(None) is None


def test_the_summary_says_what_was_found() -> None:
    assert CERTIFICATE.summary() == (
        "2 rows recomputed 2026-01-02 in float32 on cpu: cosine >= 0.9950000, "
        "Gram error <= 1.0e-02, attention error <= 1.0e-04"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"cosine": None}, None),
        ({"cosine": 0.98}, "cosine 0.98, at least 0.99"),
        ({"gram": 0.03}, "Gram error 0.03, at most 0.02"),
        ({"attention_share": 0.11}, "attention error"),
        ({"other": "the image had 2x2 pixels and has 3x3"}, "2x2 pixels"),
    ],
)
def test_what_is_outside_a_tolerance_is_said(changes: dict[str, Any], message: str | None) -> None:
    values = {name: getattr(FOUND, name) for name in Deviation.__slots__}
    actual = Deviation(**{**values, **changes})
    outside = actual.outside(TOLERANCE)
    assert len(outside) == (message is not None)
    assert (message or "") in "".join(outside)
    assert (actual.used(TOLERANCE) > 1) == (message is not None)


def test_the_share_of_a_tolerance_is_that_of_its_worst_number() -> None:
    # The angle of cosine 0.995 is 0.1000, that of 0.99 is 0.1415; both others use up one half.
    assert FOUND.used(TOLERANCE) == pytest.approx(math.sqrt(0.5))
    assert Deviation(cosine=None, gram=0.01, attention=0, attention_share=0.09).used(
        TOLERANCE
    ) == pytest.approx(0.9)


def test_a_cosine_is_never_written_as_more_than_it_is() -> None:
    assert [floored(value) for value in (1.0, 0.99999999, 0.5)] == [
        "1.0000000",
        "0.9999999",
        "0.5000000",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": []},
        {"rows": [-1]},
        {"rows": "all"},
        {"seed": -1},
        {"skipped": [{"row": 1}]},
        {"skipped": [[1, "a", "b"]]},
        {"deviation": {"gram": 0.1}},
        {"deviation": {**FOUND_JSON, "gram": math.nan}},
        {"deviation": {**FOUND_JSON, "cosine": "1"}},
        {"tolerance": {"cosine": math.inf, "gram": 0.0, "attention": 0.0}},
        {"tolerance": {"cosine": True, "gram": 0.0, "attention": 0.0}},
        {"device": ""},
        {"versions": {"torch": 2}},
        {"more": 1},
    ],
)
def test_a_certificate_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TeacherCacheError, match="certificate: "):
        Certificate.from_json({**CERTIFICATE.to_json(), **changes})
