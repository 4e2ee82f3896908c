from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from medalign.eval.metric_models.ratescore_model import RateReader, spans
from medalign.eval.predictions import AnswersError


def test_entities_have_the_type_of_their_words_and_the_vector_of_their_name(
    ner: Path, bert: Path
) -> None:
    text = "The heart is normal. No pneumothorax,\nsmall pleural effusion"
    found = RateReader.open(ner, bert).read([text, "", "is normal"])
    assert found[text].types == ("ANATOMY", "NON-DISEASE", "DISEASE")
    assert (found[""].types, found["is normal"].types) == ((), ())
    load: Any = AutoModel
    model, tokenizer = load.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    for at, name in enumerate(("heart", "pneumothorax", "pleural effusion")):
        with torch.no_grad():
            vector = model(**tokenizer(name, return_tensors="pt")).last_hidden_state[0, 0]
        torch.testing.assert_close(found[text].vectors[at], vector, atol=1e-5, rtol=1e-5)


def test_texts_do_not_depend_on_what_is_read_beside(ner: Path, bert: Path) -> None:
    reader = RateReader.open(ner, bert)
    texts = [f"lungs are clear. {'normal ' * n}edema" for n in range(20)]
    many = reader.read(texts)
    for text in texts[::7]:
        alone = reader.read([text])[text]
        assert alone.types == many[text].types == ("ANATOMY", "ABNORMALITY")
        torch.testing.assert_close(alone.vectors, many[text].vectors, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O O", []),
        ("B-X I-X", [([0, 1], "X")]),
        ("B-X B-Y", [([0], "X"), ([1], "Y")]),
        ("B-X I-Y O I-X", [([0, 1], "X")]),
        ("I-X B-Y", [([1], "Y")]),
        ("B-X O B-X I-X I-X", [([0], "X"), ([2, 3, 4], "X")]),
    ],
)
def test_an_entity_is_a_beginning_and_what_is_inside(
    labels: str, expected: list[tuple[list[int], str]]
) -> None:
    assert spans(list(enumerate(labels.split()))) == expected


def test_a_model_of_other_entities_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(AnswersError, match="tensors are missing, the first is classifier"):
        RateReader.open(bert, bert)
    with pytest.raises(AnswersError, match="cannot be loaded"):
        RateReader.open(tmp_path, bert)


def test_a_model_with_numbers_that_are_not_finite_is_refused(
    ner: Path, bert: Path, tmp_path: Path
) -> None:
    load: Any = AutoModel
    model = load.from_pretrained(bert)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[3, 1] = float("inf")
    folder = tmp_path / "damaged"
    model.save_pretrained(folder)
    with pytest.raises(AnswersError, match=r"damaged: 1 tensors .* not finite.*word_embeddings"):
        RateReader.open(ner, folder)
