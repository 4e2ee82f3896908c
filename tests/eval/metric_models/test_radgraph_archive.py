import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medalign.eval.metric_models.radgraph_annotations import Annotations
from medalign.eval.metric_models.radgraph_model import RadGraphReader, cut_words
from medalign.eval.predictions import AnswersError

GOLDEN = Path(__file__).with_name("golden_radgraph.json")


@pytest.fixture(scope="module")
def golden_texts() -> list[str]:
    texts: list[str] = json.loads(GOLDEN.read_text("utf-8"))["texts"]
    return texts


@pytest.fixture
def copied(radgraph: Path, tmp_path: Path) -> Path:
    """An archive of one's own to spoil."""
    return Path(shutil.copytree(radgraph, tmp_path / "archive"))


def test_annotations_are_those_of_the_package(
    radgraph: Path,
    radgraph_packed: Path,
    radgraph_bert: Path,
    golden_texts: list[str],
    tmp_path: Path,
) -> None:
    known = tmp_path / "annotations.json"
    known.write_text(json.dumps(json.loads(GOLDEN.read_text("utf-8"))["annotations"]), "utf-8")
    expected = Annotations.open(known).of(golden_texts)
    # Enough to tell: three kinds of entities, relations, a text longer than what BERT reads.
    entities = [entity for graph in expected.values() for entity in graph.values()]
    assert len({entity.label for entity in entities}) == 3
    assert sum(len(entity.relations) for entity in entities) == 39
    for archive in (radgraph, radgraph_packed):
        assert RadGraphReader.open(archive, radgraph_bert).of(golden_texts) == expected


def test_a_text_does_not_depend_on_what_is_read_beside(
    radgraph: Path, radgraph_bert: Path, golden_texts: list[str]
) -> None:
    reader = RadGraphReader.open(radgraph, radgraph_bert)
    together = reader.of(golden_texts[::-1])
    for text in golden_texts:
        assert reader.of([text])[text] == together[text]


def test_related_pairs_are_gone_through_once() -> None:
    spans = {(0, 0): 0, (1, 2): 1, (3, 3): 0}
    pairs = [((1, 2), (0, 0), 0), ((0, 0), (3, 3), 1), ((1, 2), (9, 9), 0), ((1, 2), (3, 3), 1)]

    def model(*_: object) -> tuple[object, object]:
        return spans, iter(pairs)  # once: a long report has thousands of pairs

    class Tokenizer:
        cls_token_id = sep_token_id = 0

        def __call__(self, words: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1] for _ in words]}

    fake: Any = model
    reader = RadGraphReader(fake, Tokenizer(), ["OBS", "ANAT"], ["modify", "located_at"])
    [graph] = reader.of(["a b c d"]).values()
    assert {key: entity.relations for key, entity in graph.items()} == {
        "1": (("located_at", "3"),),
        "2": (("modify", "1"), ("located_at", "3")),
        "3": (),
    }


def test_a_blank_text_has_no_entities(radgraph: Path, radgraph_bert: Path) -> None:
    found = RadGraphReader.open(radgraph, radgraph_bert).of(["", " \n", "\u200b"])
    assert list(found.values()) == [{}, {}, {}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Heart is normal.", "Heart is normal ."),
        ("left-sided; 2.5 cm (new)", "left-sided; 2 . 5 cm ( new )"),
        ("clear/normal,\nno: yes!?", "clear / normal , no : yes ! ?"),
    ],
)
def test_words_are_cut_around_marks_but_not_at_hyphens(text: str, words: str) -> None:
    assert cut_words(text) == words.split(" ")


class _Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_weights_that_would_run_code_are_refused_unrun(
    copied: Path, radgraph_bert: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    torch.save({"a": _Harmful(mark)}, copied / "weights.th")
    with pytest.raises(AnswersError, match=r"weights\.th: not a torch file of plain tensors"):
        RadGraphReader.open(copied, radgraph_bert)
    assert not mark.exists()


def _without(name: str) -> Callable[[Path], None]:
    return lambda archive: (archive / name).unlink()


def _with(name: str, text: str) -> Callable[[Path], object]:
    return lambda archive: (archive / name).write_text(text, "utf-8")


def _renamed(archive: Path) -> None:
    for kind in ("ner", "relation"):
        file = archive / "vocabulary" / f"radgraph__{kind}_labels.txt"
        file.rename(file.with_name(f"radgraph-xl__{kind}_labels.txt"))


def _propagating(archive: Path) -> None:
    config = json.loads((archive / "config.json").read_text("utf-8"))
    config["model"]["modules"]["coref"]["coref_prop"] = 2
    (archive / "config.json").write_text(json.dumps(config), "utf-8")


def _narrower(archive: Path) -> None:
    weights = torch.load(archive / "weights.th", weights_only=True)
    del weights["_relation._relation_scorers.radgraph__relation_labels.bias"]
    torch.save(weights, archive / "weights.th")


def _not_finite(archive: Path) -> None:
    weights = torch.load(archive / "weights.th", weights_only=True)
    weights["_relation._relation_scorers.radgraph__relation_labels.bias"][0] = float("nan")
    torch.save(weights, archive / "weights.th")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (_without("config.json"), "holds no config.json"),
        (_without("weights.th"), "holds no weights.th"),
        (_without("vocabulary/radgraph__ner_labels.txt"), "holds 0 files vocabulary/"),
        (_with("vocabulary/x__ner_labels.txt", "\n"), "holds 2 files vocabulary/"),
        (_with("vocabulary/radgraph__ner_labels.txt", "A\nB\n"), "must begin with an empty line"),
        (_with("config.json", "{}"), "config.json is not RadGraph's"),
        (_with("config.json", "{"), "config.json is not RadGraph's"),
        (_with("weights.th", "no torch file"), "not a torch file of plain tensors"),
        (_renamed, "is radgraph-xl, which cuts words in another way"),
        (_propagating, "propagates between spans"),
        (_not_finite, "weights.th: 1 tensors hold numbers that are not finite"),
        (_narrower, "does not fit RadGraph .*relation.last.bias"),
    ],
)
def test_another_archive_is_refused_in_one_line(
    copied: Path, radgraph_bert: Path, spoil: Callable[[Path], object], match: str
) -> None:
    spoil(copied)
    with pytest.raises(AnswersError, match=match) as caught:
        RadGraphReader.open(copied, radgraph_bert)
    assert str(caught.value).startswith(str(copied))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, radgraph_bert: Path) -> None:
    path = tmp_path / "radgraph.tar.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(AnswersError, match="cannot be read as a tar archive"):
        RadGraphReader.open(path, radgraph_bert)
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(AnswersError, match="cannot be read as a tar archive"):
        RadGraphReader.open(path, radgraph_bert)
