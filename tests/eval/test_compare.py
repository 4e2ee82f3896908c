import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medalign.eval.compare import Compared, Comparison, compare
from medalign.eval.predictions import Answer, AnswersError, read_answers
from medalign.eval.result_file import result_json, write_result
from medalign.eval.score import score

Write = Callable[[Path, Iterable[Mapping[str, Any]]], Path]
Files = tuple[Path, Path, Path]

IMAGES, PER_IMAGE = 6, 3


def answers_for(right: Callable[[int], bool]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{n}",
            "prompt": "Q",
            "text": "No" if right(n) else "Yes",
            "answer": "No",
            "decoder": "greedy",
            "seed": 0,
            "new_tokens": 1,
        }
        for n in range(IMAGES * PER_IMAGE)
    ]


@pytest.fixture
def files(tmp_path: Path, write_lines: Write) -> Files:
    """Eighteen questions about six images; B has right what A has, and all about three more."""
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "No"}]
    rows = [
        {
            "id": f"q{n}",
            "image": f"{n // PER_IMAGE}.png",
            "answer_type": "CLOSED",
            "conversations": turns,
        }
        for n in range(IMAGES * PER_IMAGE)
    ]
    return (
        write_lines(tmp_path / "a.jsonl", answers_for(lambda n: n // PER_IMAGE < 2)),
        write_lines(tmp_path / "b.jsonl", reversed(answers_for(lambda n: n // PER_IMAGE < 5))),
        write_lines(tmp_path / "m.jsonl", rows),
    )


def closed(found: Comparison) -> Compared:
    [metric] = [m for m in found.metrics if (m.name, m.protocol) == ("closed_accuracy", "strict")]
    return metric


def test_a_comparison_says_values_difference_and_how_sure_it_is(files: Files) -> None:
    found = closed(compare(*files, "vqa"))
    assert (found.a, found.b) == pytest.approx((100 * 6 / 18, 100 * 15 / 18))
    assert found.difference == pytest.approx(50)
    assert (found.n, found.clusters, found.better) == (18, 6, "higher")
    low, high = found.interval or (0, 0)
    assert 0 <= low < 50 < high <= 100
    # Three images differ, all in one direction: two of the 2^3 ways to swap them are as extreme.
    assert (found.p, found.exact) == (2 / 8, True)
    assert found.mcnemar is not None
    # McNemar's test takes the nine answers for nine coins: 2 / 2^9.
    assert (found.mcnemar.only_a, found.mcnemar.only_b) == (0, 9)
    assert found.mcnemar.p == pytest.approx(2 / 512)


def test_each_value_is_the_one_that_score_gives(files: Files) -> None:
    a, b, manifest = files
    found = compare(a, b, manifest, "vqa").metrics
    for path, side in ((a, "a"), (b, "b")):
        alone = {(m.protocol, m.name): m.value for m in score(path, manifest, "vqa").metrics}
        assert {(m.protocol, m.name): getattr(m, side) for m in found} == pytest.approx(alone)


def test_a_file_does_not_differ_from_itself(files: Files) -> None:
    for metric in compare(files[0], files[0], files[2], "vqa").metrics:
        assert (metric.difference, metric.interval, metric.p) == (0, (0, 0), 1)


def test_only_what_is_right_or_wrong_has_a_mcnemar_test(files: Files) -> None:
    with_test = {m.name for m in compare(*files, "vqa").metrics if m.mcnemar is not None}
    assert {"closed_accuracy", "overall_accuracy", "hallucination_rate"} <= with_test
    assert all(m.mcnemar is None for m in compare(*files, "report", metrics=["bleu"]).metrics)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
@given(random=st.randoms(use_true_random=False))
def test_the_order_of_answers_never_matters(files: Files, tmp_path: Path, random: Any) -> None:
    lines = files[1].read_text(encoding="utf-8").splitlines(keepends=True)
    random.shuffle(lines)
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("".join(lines), encoding="utf-8")
    assert compare(files[0], shuffled, files[2], "vqa").metrics == compare(*files, "vqa").metrics


def test_an_id_that_only_one_file_answers_is_an_error_that_names_it(files: Files) -> None:
    a, b, manifest = files
    kept = [line for line in b.read_text().splitlines(keepends=True) if '"q3"' not in line]
    b.write_text("".join(kept))
    for one, two in ((a, b), (b, a)):
        for allowed in (False, True):
            with pytest.raises(
                AnswersError, match=r"1 ids are answered in .*a\.jsonl and not in .*'q3'"
            ):
                compare(one, two, manifest, "vqa", allow_missing=allowed)


def test_a_record_that_neither_answers_is_an_error_unless_allowed(files: Files) -> None:
    for path in files[:2]:
        kept = [line for line in path.read_text().splitlines(keepends=True) if '"q3"' not in line]
        path.write_text("".join(kept))
    with pytest.raises(AnswersError, match=r"b\.jsonl against .*: 1 records have no answer"):
        compare(*files, "vqa")
    found = closed(compare(*files, "vqa", allow_missing=True))
    # q3 belongs to the second image, which both had right.
    assert found.n == 18
    assert found.a == pytest.approx(100 * 5 / 18)


def test_each_file_is_read_once(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> list[Answer]:
        read.append(path)
        answers: list[Answer] = read_answers(path)
        return answers

    monkeypatch.setattr("medalign.eval.score.read_answers", counted)
    compare(*files, "vqa")
    assert read == list(files[:2])


def test_a_comparison_file_says_everything(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "new" / "c.json"
    write_result(out, result_json(compare(*files, "vqa")))
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["a"]["path"].endswith("a.jsonl")
    assert (found["b"]["decoder"], found["b"]["seeds"]) == ("greedy", [0])
    assert len(found["manifest"]["sha256"]) == 64
    assert found["tests"]["clustered_by"] == "image"
    assert found["tests"]["clusters"] == 6
    for metric in found["metrics"]:
        assert metric["definition"]
        assert metric["version"]


def test_settings_of_the_decoder_are_kept_and_not_mixed(files: Files, write_lines: Write) -> None:
    a, b, manifest = files
    rows = [json.loads(line) for line in b.read_text(encoding="utf-8").splitlines()]
    write_lines(b, [row | {"settings": {"alpha": 0.5}} for row in rows])
    found = compare(a, b, manifest, "vqa")
    assert (found.a["settings"], found.b["settings"]) == ({}, {"alpha": 0.5})
    assert score(b, manifest, "vqa").settings == {"alpha": 0.5}
    write_lines(b, [row | {"settings": {"alpha": n % 2}} for n, row in enumerate(rows)])
    with pytest.raises(AnswersError, match=r"b\.jsonl: answers 'q17' and 'q16' come from diff"):
        compare(a, b, manifest, "vqa")


def test_reports_are_compared_and_what_is_not_there_is_named(files: Files) -> None:
    found = compare(*files, "report", metrics=["bleu", "radgraph"])
    assert {m.name for m in found.metrics} == {"bleu"}
    [missing] = found.not_computed
    assert (missing.name, "--radgraph FILE" in missing.reason) == ("radgraph", True)
