from collections.abc import Callable
from pathlib import Path

import pytest

from medalign.pipeline.manifest import Record, Turn
from medalign.trainer.preflight.lengths import VisualTokens, measure_lengths
from medalign.trainer.students.spec import StudentSpec, read_student


@pytest.fixture
def student(students: Callable[..., Path]) -> StudentSpec:
    return read_student(students())


def record(name: str, question: str, answer: str | None, *, image: bool = True) -> Record:
    turns = [Turn("human", f"<image>\n{question}" if image else question)]
    if answer is not None:
        turns.append(Turn("gpt", answer))
    return Record(
        id=name,
        images=("a.png",) if image else (),
        conversations=tuple(turns),
        answer_type=None,
        fields={},
        line=1,
    )


def test_lengths_are_those_before_the_cut_and_name_what_cannot_be_used(
    student: StudentSpec,
) -> None:
    records = [
        record("short", "Is this an X-ray?", "yes"),
        record("long", "Is this an X-ray?", "yes " * 50),
        record("huge question", "Is this an X-ray? " * 50, "yes"),
        record("unanswered", "Is this an X-ray?", None),
        record("text", "Is this an X-ray?", "yes", image=False),
    ]
    encoder = student.encoder
    whole = [
        len(encoder.training(each, 10**6).input_ids) for each in records if each.id != "unanswered"
    ]
    most = whole[0] + 5
    found = measure_lengths(records, encoder, most, VisualTokens(student.sight, None))
    assert found.numbers.tolist() == [0, 1, 4]
    assert found.tokens.tolist() == [whole[0], whole[1], whole[3]]
    assert found.cut == 1
    assert [name for name, _ in found.too_long] == ["huge question"]
    assert found.too_long[0][1].endswith(f"data.max_length is {most}")
    assert found.unusable == (
        ("unanswered", "record 'unanswered' ends without an answer to learn"),
    )
    assert found.longest(2) == [1, 0]
    assert (found.scanned, found.of) == (5, 5)


def test_of_many_conversations_the_longest_and_an_even_share_are_looked_at(
    student: StudentSpec,
) -> None:
    records = [record(str(k), "word " * (k == 77), "yes", image=False) for k in range(100)]
    records[33] = record("with image", "short", "yes")
    visual = VisualTokens(student.sight, None)
    found = measure_lengths(records, student.encoder, 10**6, visual, limit=20)
    assert len(found.numbers) <= 20 < found.of
    assert {0, 33, 77, 99} <= set(found.numbers.tolist())
    assert found.longest(1) == [33]
