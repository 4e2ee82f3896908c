import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medalign.eval.metric_models.locate import InstrumentPaths
from medalign.eval.metrics.statistic import Statistic
from medalign.eval.predictions import Answer, AnswersError, Task, join
from medalign.eval.result_file import result_json, write_result
from medalign.eval.score import Score, Scores, score
from medalign.eval.vqa_scores import vqa_scores
from medalign.pipeline.manifest import ManifestError, Record

Write = Callable[[Path, Iterable[Mapping[str, Any]]], Path]
MakeAnswer = Callable[..., Answer]
MakeRecord = Callable[..., Record]
Files = tuple[Path, Path]


def manifest_row(id_: str, reference: str, *, image: str = "x.png", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": reference}]
    return {"id": id_, "image": image, "conversations": turns, **more}


def answer_row(id_: str, text: str, reference: str) -> dict[str, Any]:
    one = {"id": id_, "prompt": "Q", "text": text, "answer": reference, "decoder": "greedy"}
    return {**one, "seed": 0, "new_tokens": 1}


@pytest.fixture
def vqa_files(golden: Any, tmp_path: Path, write_lines: Write) -> Files:
    items = golden["vqa"]
    kinds = [{"answer_type": item["answer_type"]} if item["answer_type"] else {} for item in items]
    rows = [
        manifest_row(item["id"], item["reference"], image=f"{item['id']}.png", **kind)
        for item, kind in zip(items, kinds, strict=True)
    ]
    answers = [answer_row(item["id"], item["prediction"], item["reference"]) for item in items]
    return (
        write_lines(tmp_path / "answers.jsonl", reversed(answers)),
        write_lines(tmp_path / "manifest.jsonl", rows),
    )


@pytest.fixture
def report_files(golden: Any, tmp_path: Path, write_lines: Write) -> Files:
    pairs = golden["reports"][:5]
    answers = [answer_row(pair["id"], pair["prediction"], "see report") for pair in pairs]
    rows = [manifest_row(pair["id"], "see report", report=pair["reference"]) for pair in pairs]
    return (
        write_lines(tmp_path / "answers.jsonl", answers),
        write_lines(tmp_path / "manifest.jsonl", rows),
    )


def by_name(scores: Scores, protocol: str) -> dict[str, Score]:
    return {metric.name: metric for metric in scores.metrics if metric.protocol == protocol}


def values(statistic: Statistic) -> list[float]:
    found: list[float] = statistic.terms[:, 0, 0].tolist()
    return found


def test_the_llava_med_protocol_gives_the_golden_percentages(golden: Any, vqa_files: Files) -> None:
    found = by_name(score(*vqa_files, "vqa"), "llava-med")
    values = {name: metric.value for name, metric in found.items()}
    assert values == pytest.approx(golden["vqa_percent"], abs=5e-5)
    assert {metric.n for name, metric in found.items() if name.startswith("open")} == {6}
    assert found["closed_accuracy"].n == 7


def test_the_strict_protocol_differs_where_the_other_is_odd(vqa_files: Files) -> None:
    found = by_name(score(*vqa_files, "vqa"), "strict")
    # CLOSED by hand: c1, c4, c5 and n1 right, c2, c3 and c6 wrong.
    assert found["closed_accuracy"].value == pytest.approx(100 * 4 / 7)
    # OPEN by hand: recall 1, 1/2, 1, 1, 0, 1; only o4 ("X ray" for "X-ray") matches exactly.
    assert found["open_recall"].value == pytest.approx(75)
    assert found["open_exact_match"].value == pytest.approx(100 / 6)
    assert found["overall_accuracy"].value == pytest.approx(100 * 5 / 13)
    assert found["overall_accuracy"].n == 13


def test_reports_have_the_golden_means(
    golden: Any, report_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medalign.eval.report_scores.find_wordnet", lambda: None)
    scores = score(*report_files, "report")
    assert scores.wordnet is None
    pairs = golden["reports"][:5]
    for protocol in ("medalign", "authors"):
        found = by_name(scores, protocol)
        for name in ("bleu", "rouge_l", "meteor"):
            mean = 100 * sum(pair[name] for pair in pairs) / 5
            assert found[name].value == pytest.approx(mean, abs=5e-3)
        assert found["meteor"].definition.count("without WordNet synonyms") == 1
        assert (found["bleu"].package, found["rouge_l"].package) == ("nltk", "rouge-score")


def test_the_authors_cleaning_is_scored_beside_ours(tmp_path: Path, write_lines: Write) -> None:
    text = "No pleural effusion is seen"
    answers = write_lines(tmp_path / "a.jsonl", [answer_row("a", text, text)])
    manifest = write_lines(tmp_path / "m.jsonl", [manifest_row("a", text)])
    scores = score(answers, manifest, "report")
    assert by_name(scores, "medalign")["rouge_l"].value == 100
    # "... is see": the stems "seen" and "see" differ, so 4 of 5 words match on both sides.
    assert by_name(scores, "authors")["rouge_l"].value == pytest.approx(80)


def test_a_scores_file_says_everything(vqa_files: Files, tmp_path: Path) -> None:
    answers, manifest = vqa_files
    out = tmp_path / "new" / "scores.json"
    write_result(out, result_json(score(answers, manifest, "vqa")))
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["manifest"] == {
        "path": str(manifest),
        "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
    }
    assert found["predictions"]["sha256"] == hashlib.sha256(answers.read_bytes()).hexdigest()
    assert (found["task"], found["decoder"], found["seeds"]) == ("vqa", "greedy", [0])
    assert found["counts"]["open"] == 6
    assert found["counts"]["closed"] == 7
    assert found["interval"]["level"] == 0.95
    for metric in found["metrics"]:
        low, high = metric["interval"]
        assert 0 <= low <= metric["value"] <= high <= 100
        assert metric["clusters"] > 1
        assert metric["unit"] == "percent"
        assert metric["definition"]
        assert metric["package"]
        assert metric["version"]
    assert list(tmp_path.glob("new/*")) == [out]


def test_a_scores_file_that_cannot_be_written_is_one_line(vqa_files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AnswersError, match="cannot be written"):
        write_result(tmp_path / "file" / "scores.json", result_json(score(*vqa_files, "vqa")))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(random=st.randoms(use_true_random=False))
def test_the_order_of_either_file_never_matters(
    vqa_files: Files, tmp_path: Path, random: Any
) -> None:
    before = score(*vqa_files, "vqa")
    shuffled = []
    for path in vqa_files:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        random.shuffle(lines)
        shuffled.append(tmp_path / f"shuffled_{path.name}")
        shuffled[-1].write_text("".join(lines), encoding="utf-8")
    after = score(shuffled[0], shuffled[1], "vqa")
    assert [(m.name, m.n) for m in after.metrics] == [(m.name, m.n) for m in before.metrics]
    for one, two in zip(before.metrics, after.metrics, strict=True):
        assert one.value == pytest.approx(two.value, abs=1e-9)


def test_intervals_are_those_of_whole_images(tmp_path: Path, write_lines: Write) -> None:
    """Five questions about each of 12 images, all right or all wrong: worth 12, not 60."""
    texts = ["no" if n // 5 % 2 else "yes" for n in range(60)]
    answers = [answer_row(str(n), text, "No") for n, text in enumerate(texts)]
    predictions = write_lines(tmp_path / "a.jsonl", answers)
    width = {}
    for each in (1, 5):
        rows = [manifest_row(str(n), "No", image=f"{n // each}.png") for n in range(60)]
        manifest = write_lines(tmp_path / f"{each}.jsonl", rows)
        found = by_name(score(predictions, manifest, "vqa"), "strict")["closed_accuracy"]
        assert (found.n, found.clusters) == (60, 60 // each)
        low, high = found.interval or (0, 0)
        width[each] = high - low
    # Of sqrt(5) = 2.24 times the width.
    assert 1.8 < width[5] / width[1] < 2.7


def test_missing_answers_lower_the_score_and_are_counted(
    vqa_files: Files, tmp_path: Path, write_lines: Write
) -> None:
    answers, manifest = vqa_files
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    fewer = write_lines(tmp_path / "fewer.jsonl", [row for row in rows if row["id"] != "n1"])
    with pytest.raises(AnswersError, match=r"fewer\.jsonl against .*manifest\.jsonl: 1 records"):
        score(fewer, manifest, "vqa")
    scores = score(fewer, manifest, "vqa", allow_missing=True)
    assert (scores.counts["missing"], scores.counts["records"], scores.counts["answers"]) == (
        1,
        13,
        12,
    )
    assert by_name(scores, "strict")["closed_accuracy"].value == pytest.approx(100 * 3 / 7)
    assert by_name(scores, "llava-med")["closed_accuracy"].value == pytest.approx(100 * 4 / 7)


@pytest.mark.parametrize("task", ["vqa", "report"])
def test_a_broken_manifest_keeps_its_own_error(
    vqa_files: Files, tmp_path: Path, task: Task
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="line 1"):
        score(vqa_files[0], broken, task)


def test_metrics_without_samples_are_left_out(tmp_path: Path, write_lines: Write) -> None:
    answers = write_lines(tmp_path / "a.jsonl", [answer_row("a", "no", "No")])
    manifest = write_lines(tmp_path / "m.jsonl", [manifest_row("a", "No")])
    found = score(answers, manifest, "vqa").metrics
    answers_only = [metric for metric in found if metric.group != "hallucination"]
    assert {metric.name for metric in answers_only} == {"closed_accuracy", "overall_accuracy"}


def test_an_interval_takes_more_than_one_cluster(tmp_path: Path, write_lines: Write) -> None:
    """Questions about one image are right or wrong together, and say nothing of another image."""
    rows = [
        manifest_row("a", "No", image="1.png", answer_type="CLOSED"),
        manifest_row("b", "No", image="1.png", answer_type="CLOSED"),
        manifest_row("c", "left lung", image="2.png", answer_type="OPEN"),
    ]
    answers = write_lines(
        tmp_path / "a.jsonl",
        [
            answer_row("a", "no", "No"),
            answer_row("b", "Yes", "No"),
            answer_row("c", "?", "left lung"),
        ],
    )
    manifest = write_lines(tmp_path / "m.jsonl", rows)
    found = by_name(score(answers, manifest, "vqa"), "strict")
    assert (found["closed_accuracy"].clusters, found["closed_accuracy"].interval) == (1, None)
    assert found["overall_accuracy"].clusters == 2
    assert found["overall_accuracy"].interval == (0.0, 50.0)


def test_records_with_options_are_multiple_choice(record: MakeRecord, answer: MakeAnswer) -> None:
    options = ["MRI", "CT"]
    turns = ("<image>\nQ", "MRI")
    records = [
        record("a", *turns, options=options, answer_type="CLOSED"),
        record("b", *turns, options=options),
        record("c", *turns, options=options, answer="MRI"),
        record("d", "<image>\nQ", "PET", options=options),
    ]
    answers = [
        answer("a", "A", answer="MRI"),
        answer("b", "MRI", answer="MRI"),
        answer("c", "MRI", answer="MRI"),
    ]
    pairs = join(answers, records, "vqa", allow_missing=True)
    samples, counts = vqa_scores(pairs)
    assert counts == {"open": 0, "closed": 0, "choice": 4, "choice_reference_not_an_option": 1}
    assert values(samples["strict", "choice_accuracy"]) == [1, 1, 1, 0]
    # LLaVA-Med lower-cases the label from the conversation: "mri" is like no option (None), and a
    # bare "A" too, so None equals None. A label in the field `answer` is taken as it is. A record
    # without an answer is wrong here, though "" would be None as well.
    assert values(samples["llava-med", "choice_accuracy"]) == [1, 0, 1, 0]


@pytest.mark.parametrize("options", ["MRI or CT", ["MRI"], ["MRI", 2], {"A": "MRI", "B": "CT"}])
def test_options_of_another_shape_are_refused(
    record: MakeRecord, answer: MakeAnswer, options: object
) -> None:
    pairs = join([answer()], [record("a", options=options)], "vqa")
    with pytest.raises(AnswersError, match=r"record 'a' has `options` .*at least two texts"):
        vqa_scores(pairs)


def test_a_model_is_refused_where_no_metric_needs_one(vqa_files: Files, tmp_path: Path) -> None:
    with pytest.raises(AnswersError, match="--task vqa has no metric that needs a model"):
        score(*vqa_files, "vqa", paths=InstrumentPaths(chexbert=tmp_path))
