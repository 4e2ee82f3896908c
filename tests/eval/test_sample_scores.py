import math
from collections.abc import Callable

import pytest

from medalign.eval.metrics.definitions import VQA_METRICS
from medalign.eval.metrics.statistic import Statistic, mean_of
from medalign.eval.predictions import Answer, Pair, join
from medalign.eval.score import task_scores
from medalign.eval.vqa_scores import question_type, vqa_scores
from medalign.pipeline.manifest import Record

MakeAnswer = Callable[..., Answer]
MakeRecord = Callable[..., Record]


@pytest.fixture
def pairs(record: MakeRecord, answer: MakeAnswer) -> list[Pair]:
    """Closed questions: reference, answer, kind of finding."""
    rows = [
        ("No", "Yes, there is.", "Abnormality"),
        ("No", "no", "Abnormality"),
        ("No", "It is yes", "Organ"),
        ("No", "I cannot tell", "Organ"),
        ("Yes", "yes", "Organ"),
        ("Yes", "No.", "Organ"),
        ("Yes", "not seen", None),
        ("CT", "Yes", "Modality"),
    ]
    records = [
        record(str(n), "<image>\nQ", gold, answer_type="CLOSED", content_type=kind)
        for n, (gold, _, kind) in enumerate(rows)
    ]
    answers = [answer(str(n), text, answer=gold) for n, (gold, text, _) in enumerate(rows)]
    pairs: list[Pair] = join(answers, records, "vqa")
    return pairs


def values(samples: dict[tuple[str, str], Statistic], protocol: str) -> dict[str, float]:
    return {name: found.value() for (of, name), found in samples.items() if of == protocol}


def test_a_yes_to_an_absent_finding_is_a_hallucination(pairs: list[Pair]) -> None:
    found = values(vqa_scores(pairs)[0], "strict")
    # Of four questions with reference no, two are answered yes; one answer says neither.
    assert found["hallucination_rate"] == 2 / 4
    assert found["hallucination_rate: Abnormality"] == 1 / 2
    assert found["hallucination_rate: Organ"] == 1 / 2
    assert found["missed_findings"] == 1 / 3
    # Of seven yes/no questions; the one about CT is none.
    assert found["yes_no_accuracy"] == pytest.approx(2 / 7)
    assert found["yes_share"] == pytest.approx(3 / 7)
    assert found["unclear_answers"] == pytest.approx(2 / 7)


def test_medhevals_judge_takes_what_is_no_no_for_a_yes(pairs: list[Pair]) -> None:
    found = values(vqa_scores(pairs)[0], "medheval")
    assert found["hallucination_rate"] == 3 / 4
    assert found["missed_findings"] == 2 / 3
    assert found["unclear_answers"] == 0
    assert not [name for name in found if ":" in name]


def test_an_absent_answer_is_no_hallucination(pairs: list[Pair]) -> None:
    blank = Pair(record=pairs[0].record, reference="No", prediction="", missing=True)
    samples, _ = vqa_scores([blank])
    for protocol in ("strict", "medheval"):
        found = values(samples, protocol)
        assert (found["hallucination_rate"], found["unclear_answers"]) == (0, 1)


def test_yes_no_questions_count_whatever_their_type(record: MakeRecord, answer: MakeAnswer) -> None:
    turns = ("<image>\nQ", "No")
    records = [
        record("open", *turns, answer_type="OPEN"),
        record("options", *turns, options=["Yes", "No"], answer_type="CLOSED"),
        record("letter", "<image>\nQ", "B", options=["Yes", "No"]),
        record("words", "<image>\nQ", "CT", options=["CT", "No"]),
    ]
    answers = [
        answer("open", "Yes"),
        answer("options", "A"),
        answer("letter", "B", answer="B"),
        answer("words", "No", answer="CT"),
    ]
    samples, _ = vqa_scores(join(answers, records, "vqa"))
    strict = samples["strict", "hallucination_rate"]
    assert strict.samples.tolist() == [0, 1, 2]
    assert strict.terms[:, 0, 0].tolist() == [1, 1, 0]
    assert samples["medheval", "yes_share"].samples.tolist() == [0, 1, 2]


def test_the_released_scorer_does_not_look_at_options(
    record: MakeRecord, answer: MakeAnswer
) -> None:
    turns = ("<image>\nQ", "No")
    options = ["Yes", "No"]
    records = [
        record("a", *turns, options=options, answer_type="CLOSED"),
        record("b", *turns, options=options),
        record("c", *turns, options=options, answer_type="OPEN"),
    ]
    samples, counts = vqa_scores(join([answer(id_) for id_ in "abc"], records, "vqa"))
    assert samples["llava-med", "closed_accuracy"].samples.tolist() == [0, 1]
    assert samples["llava-med", "open_recall"].samples.tolist() == [2]
    assert samples["llava-med", "choice_accuracy"].samples.tolist() == [0, 1, 2]
    assert ("strict", "closed_accuracy") not in samples
    assert counts["choice"] == 3


def test_the_kind_of_a_question_is_the_first_field_that_says_it(
    record: MakeRecord, answer: MakeAnswer
) -> None:
    fields = {"modality": "X-ray", "content_type": " Organ ", "question_type": 3}
    for known in (fields, {"modality": " Organ "}):
        [pair] = join([answer()], [record("a", **known)], "vqa")
        assert question_type(pair) == "Organ"
    [pair] = join([answer()], [record("a", question_type="")], "vqa")
    assert question_type(pair) is None


def test_kinds_stand_in_the_table_below_their_rate(pairs: list[Pair]) -> None:
    scored = task_scores(pairs, "vqa", VQA_METRICS, None)
    strict = [
        name
        for (protocol, name), of in scored.definitions.items()
        if (protocol, of.group) == ("strict", "hallucination")
    ]
    assert strict[:3] == [
        "hallucination_rate",
        "hallucination_rate: Abnormality",
        "hallucination_rate: Organ",
    ]


def test_only_wanted_groups_are_kept(pairs: list[Pair]) -> None:
    scored = task_scores(pairs, "vqa", ["closed"], None)
    assert set(scored.definitions) == {
        ("strict", "closed_accuracy"),
        ("llava-med", "closed_accuracy"),
    }


def test_a_sample_that_is_not_a_number_is_not_nothing_to_count(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {("strict", "closed_accuracy"): mean_of([1.0, math.nan])}
    monkeypatch.setattr("medalign.eval.score.vqa_scores", lambda _: (found, {}))
    scored = task_scores(pairs, "vqa", ["closed"], None)
    assert not scored.definitions
    [left_out] = scored.not_computed
    assert left_out.name == "closed_accuracy (strict)"
    assert "not a number" in left_out.reason
