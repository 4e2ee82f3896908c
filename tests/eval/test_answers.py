import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.predictions import (
    Answer,
    AnswersError,
    gold,
    join,
    parse_answers,
    read_answers,
    reference,
)
from medalign.pipeline.manifest import Record, Turn

MakeAnswer = Callable[..., Answer]
MakeRecord = Callable[..., Record]
HERE = Path("predictions.jsonl")


@given(st.text(), st.text(), st.integers())
def test_an_answer_survives_the_round_trip(id_: str, text: str, seed: int) -> None:
    one = Answer(
        id=id_, prompt=text, text=text, answer=text, decoder="beam", seed=seed, new_tokens=1
    )
    line = one.to_line()
    assert line.count(b"\n") == 1
    assert parse_answers(line, HERE) == [one]


def test_a_line_holds_the_documented_keys(answer: MakeAnswer) -> None:
    keys = list(json.loads(answer().to_line()))
    assert keys[:7] == ["id", "prompt", "text", "answer", "decoder", "seed", "new_tokens"]
    assert keys[7:] == ["settings"]


def test_blank_lines_a_byte_order_mark_and_other_fields_are_accepted(answer: MakeAnswer) -> None:
    row = json.loads(answer(id_="7").to_line())
    data = b"\xef\xbb\xbf\n" + json.dumps({**row, "id": 7, "extra": 1}).encode() + b"\r\n\n"
    assert parse_answers(data, HERE) == [answer(id_="7")]


def test_a_line_separator_inside_a_text_does_not_end_the_line(answer: MakeAnswer) -> None:
    one = answer(text="clear\u2028lungs\x85")
    data = json.dumps(json.loads(one.to_line()), ensure_ascii=False).encode() + b"\n"
    assert parse_answers(data, HERE) == [one]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "line 2: is not JSON"),
        (b"\xff", "line 2: is not JSON"),
        (b"[]", "line 2: is not a JSON object"),
        (b"[" * 100_000, "line 2: is not JSON"),
        (b'{"id": "b"}', "line 2: `prompt` is missing or not text, .*`seed` is .* a whole number"),
        (b'{"id": null}', "line 2: `id` is missing or not text"),
    ],
)
def test_a_bad_line_is_named(answer: MakeAnswer, line: bytes, problem: str) -> None:
    with pytest.raises(AnswersError, match=problem):
        parse_answers(answer().to_line() + line + b"\n", HERE)


@pytest.mark.parametrize(("field", "value"), [("seed", True), ("new_tokens", 1.5), ("text", None)])
def test_a_field_of_another_type_is_refused(answer: MakeAnswer, field: str, value: object) -> None:
    row = {**json.loads(answer().to_line()), field: value}
    with pytest.raises(AnswersError, match=f"line 1: `{field}` is missing or not"):
        parse_answers(json.dumps(row).encode() + b"\n", HERE)


def test_a_last_line_that_was_cut_short_says_so(answer: MakeAnswer) -> None:
    with pytest.raises(AnswersError, match=r"line 2: is not JSON.*cut short, run `eval generate`"):
        parse_answers(answer().to_line() + answer(id_="b").to_line()[:-9], HERE)


def test_a_repeated_id_names_both_lines(answer: MakeAnswer) -> None:
    lines = [answer().to_line(), answer(id_="b").to_line(), answer().to_line()]
    with pytest.raises(AnswersError, match="line 3: id 'a' was answered before, on line 1"):
        parse_answers(b"".join(lines), HERE)


def test_many_problems_are_counted_and_the_first_few_named() -> None:
    with pytest.raises(AnswersError, match=r"8 problems: line 1: .*line 5: .*; and 3 more$"):
        parse_answers(b"{\n" * 8, HERE)


def test_a_file_of_two_decoders_is_refused(tmp_path: Path, answer: MakeAnswer) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(answer().to_line() + answer(id_="b", decoder="beam").to_line())
    with pytest.raises(AnswersError, match=r"several decoders \(beam, greedy\)"):
        read_answers(path)


def test_a_missing_or_empty_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AnswersError, match=r"gone\.jsonl: cannot be read: no such file"):
        read_answers(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(AnswersError, match=r"empty\.jsonl: holds no answers"):
        read_answers(tmp_path / "empty.jsonl")


@given(st.permutations(["a", "b", "c", "d"]), st.permutations(["a", "b", "c", "d"]))
def test_pairs_follow_ids_whatever_the_order_of_the_answers(
    order: list[str], record_order: list[str]
) -> None:
    records = [
        Record(
            id=id_,
            images=(),
            conversations=(Turn("human", "?"), Turn("gpt", f"gold {id_}")),
            answer_type=None,
            fields={},
            line=1,
        )
        for id_ in record_order
    ]
    answers = [
        Answer(
            id=id_,
            prompt="?",
            text=f"said {id_}",
            answer=f"gold {id_}",
            decoder="greedy",
            seed=0,
            new_tokens=1,
        )
        for id_ in order
    ]
    pairs = join(answers, records, "vqa")
    assert [pair.record.id for pair in pairs] == record_order
    for pair in pairs:
        assert pair.prediction.split()[1] == pair.reference.split()[1] == pair.record.id


def test_the_reference_depends_on_the_task(record: MakeRecord) -> None:
    turns = ("<image>\nQ1", "first", "Q2", "last")
    one = record("a", *turns)
    assert (reference(one, "vqa"), reference(one, "report"), gold(one)) == (
        "first",
        "last",
        "first",
    )
    two = record("a", *turns, report="the report")
    assert (reference(two, "vqa"), reference(two, "report")) == ("first", "the report")
    three = record("a", "<image>\nQ1", report="the report")
    assert (reference(three, "report"), gold(three)) == ("the report", "the report")
    assert gold(record("a", "<image>\nQ1")) == ""


@pytest.mark.parametrize("turns", [("<image>\nQ",), ("<image>\nQ", " ")])
def test_a_record_without_a_reference_is_refused(
    record: MakeRecord, answer: MakeAnswer, turns: tuple[str, ...]
) -> None:
    one = record("a", *turns)
    with pytest.raises(AnswersError, match="manifest line 1: record 'a' has no reference"):
        join([answer(answer=gold(one))], [one], "vqa")


def test_answers_to_unknown_records_are_named(answer: MakeAnswer, record: MakeRecord) -> None:
    with pytest.raises(AnswersError, match=r"2 answers belong to no record .*: 'x', 'y'$"):
        join([answer(), answer("x"), answer("y")], [record()], "vqa", allow_missing=True)


def test_missing_answers_are_refused_or_wrong(answer: MakeAnswer, record: MakeRecord) -> None:
    records = [record(id_) for id_ in "abcdefgh"]
    with pytest.raises(AnswersError, match=r"7 records have no answer; .*'b', 'c', .*and 2 more$"):
        join([answer()], records, "vqa")
    pairs = join([answer()], records, "vqa", allow_missing=True)
    assert [pair.missing for pair in pairs] == [False] + [True] * 7
    assert [pair.prediction for pair in pairs] == ["No"] + [""] * 7


def test_stale_answers_are_refused(answer: MakeAnswer, record: MakeRecord) -> None:
    with pytest.raises(AnswersError, match="1 answers carry another reference than the manifest"):
        join([answer(answer="Yes")], [record()], "vqa")


FRAME = "A chat. USER: <image>\n{} ASSISTANT:"


def test_answers_to_a_changed_question_are_refused(answer: MakeAnswer, record: MakeRecord) -> None:
    asked = {"a": "Is the heart large?", "b": "Is there  edema?", "c": "Left\nor right?"}
    prompts = {id_: FRAME.format(question) for id_, question in asked.items()}
    answers = [answer(id_, prompt=prompts[id_]) for id_ in asked]
    records = [record(id_, f"<image>\n{question} ", "No") for id_, question in asked.items()]
    assert len(join(answers, records, "vqa")) == 3
    records[1] = record("b", "<image>\nIs there no edema?", "No")
    with pytest.raises(AnswersError, match=r"1 answers were given to another question .*: 'b'$"):
        join(answers, records, "vqa")


@pytest.mark.parametrize("prompts", [("", "", ""), ("one", "two", "three"), ("", "", "Is c?")])
def test_prompts_that_do_not_hold_questions_tell_nothing(
    answer: MakeAnswer, record: MakeRecord, prompts: tuple[str, ...]
) -> None:
    answers = [answer(id_, prompt=p) for id_, p in zip("abc", prompts, strict=True)]
    records = [record(id_, f"<image>\nIs {id_}?", "No") for id_ in "abc"]
    assert len(join(answers, records, "vqa")) == 3


def test_any_reference_of_the_record_may_be_carried(answer: MakeAnswer, record: MakeRecord) -> None:
    one = record("a", "<image>\nQ1", "first", "Q2", "last", report="the report")
    for carried in ("first", "last", "the report"):
        assert join([answer(answer=carried)], [one], "report")[0].reference == "the report"


@pytest.mark.parametrize("turns", [(), ("<image>\nQ",)])
def test_a_report_that_is_no_text_is_refused_and_named(
    record: MakeRecord, answer: MakeAnswer, turns: tuple[str, ...]
) -> None:
    one = record("a", *turns, report=["Findings", "Impression"])
    with pytest.raises(AnswersError, match="record 'a' has no reference; --task report compares"):
        join([answer(answer=gold(one))], [one], "report")


def test_an_unknown_task_is_refused(answer: MakeAnswer, record: MakeRecord) -> None:
    task: Any = "vaq"
    with pytest.raises(AnswersError, match="task is 'vaq', known are vqa and report"):
        join([answer()], [record()], task)
