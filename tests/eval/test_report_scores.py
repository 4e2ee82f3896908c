import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from medalign.eval.metric_models.bertscore_model import BertScorer
from medalign.eval.metric_models.chexbert_model import Chexbert, ReadReport
from medalign.eval.metric_models.locate import Instruments
from medalign.eval.metric_models.radgraph_annotations import Annotations
from medalign.eval.metric_models.ratescore_model import RateReader
from medalign.eval.metrics.bertscore import Matched
from medalign.eval.metrics.definitions import REPORT_METRICS, VQA_METRICS
from medalign.eval.metrics.ratescore import Entities
from medalign.eval.predictions import Pair
from medalign.eval.report_scores import report_scores
from medalign.eval.score import TaskScores, choose_metrics, task_scores
from medalign.pipeline.manifest import Record

MakeRecord = Callable[..., Record]
MakePair = Callable[..., Pair]


class FixedLabels:
    """Stands for CheXbert: says of a text what it is told to."""

    def __init__(self, known: dict[str, Sequence[int]]) -> None:
        self.known = known
        self.asked: list[str] = []

    def read(self, texts: Sequence[str]) -> dict[str, ReadReport]:
        self.asked += texts
        blank = [0] * 14
        return {
            text: ReadReport(torch.tensor([1.0, len(text)]), tuple(self.known.get(text, blank)))
            for text in texts
        }


class LengthScorer:
    """Stands for BERTScore: the ratio of lengths."""

    label = "rulers layer 1"

    def scores(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Matched]:
        assert len(set(pairs)) == len(pairs)
        return {pair: Matched(len(pair[0]) / 100, len(pair[1]) / 100, 0.5) for pair in pairs}


class FirstWord:
    """Stands for RaTEScore's models: the first word is an anatomy."""

    def read(self, texts: Sequence[str]) -> dict[str, Entities]:
        kinds = {text: ("ANATOMY",) * bool(text) for text in texts}
        return {text: Entities(kind, torch.ones(len(kind), 2)) for text, kind in kinds.items()}


@pytest.fixture
def pair(record: MakeRecord) -> MakePair:
    def make(prediction: str, reference: str, *, missing: bool = False) -> Pair:
        return Pair(
            record=record(f"{prediction}{reference}"),
            reference=reference,
            prediction=prediction,
            missing=missing,
        )

    return make


def scored(pairs: Sequence[Pair], instruments: Instruments) -> dict[str, dict[str, float]]:
    samples = report_scores(pairs, REPORT_METRICS, instruments).samples
    found: dict[str, dict[str, float]] = {"medalign": {}, "authors": {}}
    for (protocol, name), statistic in samples.items():
        found[protocol][name] = statistic.value()
    return found


@pytest.fixture
def labelled(golden: Any, pair: MakePair) -> tuple[list[Pair], FixedLabels]:
    given = golden["chexbert"]
    count = range(len(given["ref_classes"]))
    known = {f"prediction number {n}.": given["hyp_classes"][n] for n in count}
    known |= {f"reference number {n}.": given["ref_classes"][n] for n in count}
    pairs = [pair(f"prediction number {n}.", f"reference number {n}.") for n in count]
    return pairs, FixedLabels(known)


def test_labels_of_reports_score_the_golden_numbers(
    golden: Any, labelled: tuple[list[Pair], FixedLabels]
) -> None:
    pairs, labels = labelled
    found = scored(pairs, Instruments(chexbert=cast("Chexbert", labels)))["medalign"]
    expected = golden["chexbert"]
    for name, key in {
        "f1_micro_14": "micro14",
        "f1_macro_14": "macro14",
        "f1_micro_5": "micro5",
        "f1_macro_5": "macro5",
        "f1_example": "example_f1_14",
        "all_5": "accuracy5_all_match",
    }.items():
        assert found[f"chexbert_{name}"] == pytest.approx(expected[key], abs=5e-5)
    # By hand, without No Finding: predicted 3, 0, 0, 1, 5; wanted 3, 0, 3, 1, 4; in both
    # 2, 0, 0, 1, 3.
    assert found["chexbert_precision"] == pytest.approx(6 / 9)
    assert found["chexbert_recall"] == pytest.approx(6 / 11)
    assert found["chexbert_commission"] == pytest.approx(3 / 9)
    assert found["chexbert_omission"] == pytest.approx(5 / 11)
    assert found["chexbert_any_commission"] == pytest.approx(2 / 5)


def test_a_report_compared_with_itself_invents_and_misses_nothing(
    labelled: tuple[list[Pair], FixedLabels], pair: MakePair
) -> None:
    texts = [each.reference for each in labelled[0]]
    same = [pair(text, text) for text in texts]
    found = scored(same, Instruments(chexbert=cast("Chexbert", labelled[1])))["medalign"]
    assert found["chexbert_similarity"] == pytest.approx(1)
    assert found["chexbert_f1_micro_14"] == 1
    assert (found["chexbert_commission"], found["chexbert_omission"]) == (0, 0)


def test_a_report_that_is_missing_finds_nothing_and_is_like_nothing(
    labelled: tuple[list[Pair], FixedLabels], pair: MakePair
) -> None:
    _, labels = labelled
    labels.known[""] = [1] * 14
    gone = [pair("", "reference number 0.", missing=True)]
    instruments = Instruments(
        chexbert=cast("Chexbert", labels), ratescore=cast("RateReader", FirstWord())
    )
    found = scored(gone, instruments)["medalign"]
    assert {found["chexbert_similarity"], found["chexbert_recall"], found["ratescore"]} == {0}
    assert found["chexbert_omission"] == 1


def test_what_cannot_be_counted_is_said_and_not_zero(
    labelled: tuple[list[Pair], FixedLabels], pair: MakePair
) -> None:
    silent = [pair("nothing known at all", "reference number 0.")]
    found = task_scores(
        silent, "report", ["chexbert"], Instruments(chexbert=cast("Chexbert", labelled[1]))
    )
    assert ("medalign", "chexbert_recall") in found.definitions
    assert ("medalign", "chexbert_precision") not in found.definitions
    reasons = {each.name: each.reason for each in found.not_computed}
    assert reasons["chexbert_precision (medalign)"] == "is undefined: nothing to count"


def test_the_authors_cleaning_reaches_every_metric(pair: MakePair) -> None:
    labels = FixedLabels({})
    pairs = [pair("Assistant: an effusion is seen", "gold"), pair("stable heart", "gold")]
    instruments = Instruments(
        bertscore=cast("BertScorer", LengthScorer()), chexbert=cast("Chexbert", labels)
    )
    found = scored(pairs, instruments)
    # The authors eat "Assistant:" and a last n (but no blank), and "sta" and a last t.
    lengths = {
        "medalign": len("an effusion is seen") + len("stable heart"),
        "authors": len(" an effusion is see") + len("ble hear"),
    }
    for protocol, length in lengths.items():
        assert found[protocol]["bertscore_precision"] == pytest.approx(length / 2 / 100)
    assert set(labels.asked) == {
        "gold",
        "an effusion is seen",
        "stable heart",
        " an effusion is see",
        "No report generated.",  # in place of "ble hear", which is too short
    }


def annotations(path: Path, texts: dict[str, Any]) -> Annotations:
    path.write_text(json.dumps([{"text": t, **graph} for t, graph in texts.items()]), "utf-8")
    return Annotations.open(path)


def test_graphs_of_reports_score_the_golden_numbers(
    golden: Any, pair: MakePair, tmp_path: Path
) -> None:
    items = golden["radgraph"]
    texts = {f"prediction {item['id']}.": item["hyp"] for item in items}
    texts |= {f"reference {item['id']}.": item["ref"] for item in items}
    pairs = [pair(f"prediction {i['id']}.", f"reference {i['id']}.") for i in items]
    found = scored(pairs, Instruments(radgraph=annotations(tmp_path / "a.json", texts)))["medalign"]
    for name in ("simple", "partial", "complete"):
        mean = sum(item["radgraph_pkg"][name] for item in items) / 4
        assert found[f"radgraph_{name}"] == pytest.approx(mean, abs=5e-5)
    combined = sum(item["cxr_report_metric"]["radgraph_combined"] for item in items) / 4
    assert found["radgraph_combined"] == pytest.approx(combined, abs=5e-5)
    # Present observations. r1: small, effusion, clear against small, effusion; r2: normal in both;
    # r3 and r4: none.
    assert found["radgraph_hallucinated"] == pytest.approx(1 / 4)
    assert found["radgraph_omitted"] == 0
    assert found["radgraph_any_hallucinated"] == pytest.approx(1 / 4)
    assert found["radgraph_hallucinated_number"] == pytest.approx(1 / 4)


def finding(*words: str) -> dict[str, Any]:
    label = "Observation::definitely present"
    entities = {
        str(n): {"tokens": word, "label": label, "relations": []} for n, word in enumerate(words)
    }
    return {"entities": entities}


def test_findings_are_left_out_of_the_references_and_invented_by_predictions(
    pair: MakePair, tmp_path: Path
) -> None:
    texts = {"first report.": finding("edema", "mass", "nodule"), "one report.": finding("edema")}
    known = Instruments(radgraph=annotations(tmp_path / "a.json", texts))
    found = scored([pair("one report.", "first report.")], known)["medalign"]
    assert found["radgraph_omitted"] == pytest.approx(2 / 3)
    assert found["radgraph_hallucinated"] == 0
    found = scored([pair("first report.", "one report.")], known)["medalign"]
    assert found["radgraph_hallucinated"] == pytest.approx(2 / 3)
    assert found["radgraph_hallucinated_number"] == 2
    assert found["radgraph_omitted"] == 0


def test_a_report_that_is_missing_has_no_graph(pair: MakePair, tmp_path: Path) -> None:
    """Though the authors read "No report generated." in its place."""
    texts = {"No report generated.": finding("report"), "gold report.": finding("report")}
    known = Instruments(radgraph=annotations(tmp_path / "a.json", texts))
    found = scored([pair("", "gold report.", missing=True)], known)["authors"]
    assert (found["radgraph_combined"], found["radgraph_omitted"]) == (0, 1)


def test_reports_without_entities_are_counted(pair: MakePair) -> None:
    pairs = [pair("", "lungs are clear"), pair("lungs", "lungs are clear")]
    found = report_scores(
        pairs, ["ratescore"], Instruments(ratescore=cast("RateReader", FirstWord()))
    )
    assert found.counts == {"reports_without_medical_entities": 1}
    assert found.samples["medalign", "ratescore"].value() == pytest.approx((0.5 + 1) / 2)


def test_every_metric_of_every_instrument_has_a_definition(
    labelled: tuple[list[Pair], FixedLabels], tmp_path: Path
) -> None:
    pairs, labels = labelled
    graphs: dict[str, Any] = {
        text: {"entities": {}} for p in pairs for text in (p.prediction, p.reference)
    }
    instruments = Instruments(
        bertscore=cast("BertScorer", LengthScorer()),
        chexbert=cast("Chexbert", labels),
        radgraph=annotations(tmp_path / "a.json", graphs),
        ratescore=cast("RateReader", FirstWord()),
    )
    found: TaskScores = task_scores(pairs, "report", REPORT_METRICS, instruments)
    undefined = {name.split(" ")[0] for name in (each.name for each in found.not_computed)}
    assert undefined == {"radgraph_hallucinated", "radgraph_omitted"}
    named = {name for _, name in found.definitions} | undefined
    assert named == {name for _, name in found.statistics}
    assert {of.group for of in found.definitions.values()} == set(REPORT_METRICS)
    assert "rulers layer 1" in found.definitions["medalign", "bertscore_f1"].sentence


def test_metrics_are_chosen_by_name_in_the_order_of_tables() -> None:
    assert choose_metrics("report", []) == REPORT_METRICS
    assert choose_metrics("vqa", []) == VQA_METRICS
    assert choose_metrics("report", ["chexbert", "bleu"]) == ("bleu", "chexbert")
    with pytest.raises(ValueError, match="--metrics bleu, chexbrt: task vqa has open, closed,"):
        choose_metrics("vqa", ["bleu", "chexbrt", "open"])
