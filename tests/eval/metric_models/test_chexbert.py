import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from medalign.eval.metric_models.chexbert_model import Chexbert, ReadReport
from medalign.eval.predictions import AnswersError

TEXTS = ["the heart is normal .", "small left pleural effusion", "", "no edema"]


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_report_is_read_as_the_published_code_reads_it(
    chexbert: Path, bert: Path, chexbert_weights: dict[str, Tensor]
) -> None:
    found = Chexbert.open(chexbert, bert).read(TEXTS)
    # One text at a time, without padding: BERT's first vector, then every head's argmax.
    model: Any = BertModel(BertConfig.from_pretrained(bert))
    model.eval()
    own = {k.removeprefix("module.bert."): v for k, v in chexbert_weights.items() if "bert" in k}
    own.pop("embeddings.position_ids")
    model.load_state_dict(own)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    for text in TEXTS:
        with torch.no_grad():
            vector = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0]
        heads = (
            chexbert_weights[f"module.linear_heads.{n}.weight"] @ vector
            + chexbert_weights[f"module.linear_heads.{n}.bias"]
            for n in range(14)
        )
        assert found[text].classes == tuple(int(head.argmax()) for head in heads)
        torch.testing.assert_close(found[text].vector, vector, atol=1e-5, rtol=1e-5)
    assert len({found[text].classes for text in TEXTS}) > 1


def test_similarity_is_the_golden_cosine(golden: Any) -> None:
    given = golden["chexbert"]["semb_score_example"]
    one, two = (ReadReport(torch.tensor(given[k]), ()) for k in ("ref_cls", "hyp_cls"))
    assert one.similarity(two) == pytest.approx(given["cosine"], abs=5e-5)
    assert one.similarity(one) == pytest.approx(1)


def test_runs_of_blanks_and_line_ends_are_one_blank(chexbert: Path, bert: Path) -> None:
    found = Chexbert.open(chexbert, bert).read(["no edema", "\n no  \t edema\n"])
    one, two = found.values()
    torch.testing.assert_close(one.vector, two.vector)


def test_a_long_report_is_cut_and_keeps_its_end_token(chexbert: Path, bert: Path) -> None:
    texts = [" ".join(["edema"] * 22), " ".join(["edema"] * 400)]
    one, two = Chexbert.open(chexbert, bert).read(texts).values()
    torch.testing.assert_close(one.vector, two.vector)


def test_a_plain_state_dict_is_read_too(
    chexbert: Path, bert: Path, chexbert_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    bare = {key.removeprefix("module."): value for key, value in chexbert_weights.items()}
    plain = Chexbert.open(save(tmp_path / "plain.pth", bare), bert).read(TEXTS)
    for text, read in Chexbert.open(chexbert, bert).read(TEXTS).items():
        assert plain[text].classes == read.classes


class _Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_file_that_would_run_code_is_refused_unrun(bert: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = save(tmp_path / "chexbert.pth", {"model_state_dict": _Harmful(mark)})
    with pytest.raises(AnswersError, match=r"chexbert\.pth: not a torch file of plain tensors"):
        Chexbert.open(path, bert)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"no torch file", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_one_line(bert: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chexbert.pth"
    path.write_bytes(content)
    with pytest.raises(AnswersError, match="damaged, is refused") as caught:
        Chexbert.open(path, bert)
    assert "\n" not in str(caught.value)


def test_what_is_no_state_dict_is_refused(bert: Path, tmp_path: Path) -> None:
    for content in ([1, 2], {"model_state_dict": 3}, {1: torch.zeros(1)}, {"a": 1}):
        with pytest.raises(AnswersError, match=r"x\.pth: holds no (`model_state_dict`|state dict)"):
            Chexbert.open(save(tmp_path / "x.pth", content), bert)


@pytest.mark.parametrize(
    "change", ["module.linear_heads.3.weight", "module.bert.encoder.layer.1.output.dense.weight"]
)
def test_a_missing_or_misshapen_tensor_is_refused_and_named(
    bert: Path, chexbert_weights: dict[str, Tensor], tmp_path: Path, change: str
) -> None:
    rest = {key: value for key, value in chexbert_weights.items() if key != change}
    bare = change.removeprefix("module.")
    for weights in (
        rest,
        rest | {change: torch.zeros(3, 3)},
        chexbert_weights | {"more": torch.zeros(1)},
    ):
        path = save(tmp_path / "x.pth", {"model_state_dict": weights})
        with pytest.raises(AnswersError, match="does not fit CheXbert") as caught:
            Chexbert.open(path, bert)
        assert bare in str(caught.value) or "more" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_and_named(
    bert: Path, chexbert_weights: dict[str, Tensor], tmp_path: Path, bad: float
) -> None:
    name = "module.linear_heads.3.bias"
    spoilt = chexbert_weights | {name: torch.tensor([0.0, bad, 0.0, 0.0])}
    path = save(tmp_path / "x.pth", {"model_state_dict": spoilt})
    with pytest.raises(AnswersError, match=r"x\.pth: 1 tensors .* not finite, .*heads\.3\.bias"):
        Chexbert.open(path, bert)


def test_another_models_folder_is_refused(chexbert: Path, roberta: Path) -> None:
    with pytest.raises(AnswersError, match="is of type 'roberta', --bert takes a BERT"):
        Chexbert.open(chexbert, roberta)


def test_numbers_do_not_depend_on_what_is_read_beside(chexbert: Path, bert: Path) -> None:
    reader = Chexbert.open(chexbert, bert)
    many = reader.read([f"{text} {'clear ' * n}" for n in range(9) for text in TEXTS] + TEXTS)
    for text in TEXTS:
        alone = reader.read([text])[text]
        assert np.allclose(alone.vector, many[text].vector, atol=1e-5)
