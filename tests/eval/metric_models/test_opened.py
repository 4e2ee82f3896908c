import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import RobertaConfig, RobertaForTokenClassification

from medalign.eval.metric_models.locate import (
    BERT,
    BERTSCORE,
    CHEXBERT,
    FOLDER_VARIABLE,
    InstrumentPaths,
    Instruments,
    open_instruments,
)
from medalign.eval.metrics.definitions import REPORT_METRICS
from medalign.eval.predictions import AnswersError


@pytest.fixture(autouse=True)
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no folder of one's own."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    return cache


def in_hub(cache: Path, repository: str, *files: Path) -> None:
    """Put files into a hub cache as huggingface_hub lays it out."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder / "snapshots" / "abc")


def test_what_is_not_there_is_named_with_where_it_was_looked_for(nothing_there: Path) -> None:
    found = open_instruments(REPORT_METRICS, InstrumentPaths())
    assert set(found.missing) == {"bertscore", "chexbert", "radgraph", "ratescore"}
    for word in ("roberta-large", "--bertscore DIR", "$MEDALIGN_METRICS", str(nothing_there)):
        assert word in found.missing["bertscore"]
    for word in ("chexbert.pth at --chexbert FILE", "bert-base-uncased at --bert DIR"):
        assert word in found.missing["chexbert"]
    assert "radgraph.tar.gz at --radgraph FILE" in found.missing["radgraph"]
    assert "--radgraph-bert DIR" in found.missing["radgraph"]
    assert "--ratescore-ner DIR" in found.missing["ratescore"]
    assert "--ratescore-synonyms DIR" in found.missing["ratescore"]


def test_what_is_not_wanted_is_not_missed() -> None:
    assert open_instruments(["bleu"], InstrumentPaths()) == Instruments()


def test_half_a_metric_says_which_half_is_missing(chexbert: Path) -> None:
    found = open_instruments(["chexbert"], InstrumentPaths(chexbert=chexbert))
    assert "--bert DIR" in found.missing["chexbert"]
    assert "--chexbert" not in found.missing["chexbert"]
    assert found.chexbert is None


def test_a_wrong_path_is_an_error_and_no_missing_model(tmp_path: Path, bert: Path) -> None:
    for paths in (
        InstrumentPaths(chexbert=tmp_path / "no.pth", bert=bert),
        InstrumentPaths(bertscore=tmp_path),
        InstrumentPaths(ratescore_ner=tmp_path / "no"),
    ):
        with pytest.raises(AnswersError, match=r"takes (chexbert.pth|roberta-large|RaTE-NER)"):
            open_instruments(REPORT_METRICS, paths)


@pytest.mark.parametrize(
    ("metric", "option", "says"),
    [
        ("chexbert", "chexbert", "not a torch file of plain tensors"),
        ("chexbert", "bert", "is of type 'roberta', --bert takes a BERT"),
        ("radgraph", "radgraph", "cannot be read as a tar archive"),
        ("radgraph", "radgraph_bert", "is of type 'roberta', --radgraph-bert takes a BERT"),
        ("ratescore", "ratescore_ner", "finds no entities, RaTEScore takes"),
        ("ratescore", "ratescore_synonyms", "is another model, or part of one"),
    ],
)
def test_a_wrong_model_is_named_where_another_is_missing(
    metric: str, option: str, says: str, roberta: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "ok.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    recogniser = tmp_path / "recogniser"
    config: Any = RobertaConfig.from_pretrained(roberta)
    RobertaForTokenClassification(config).save_pretrained(recogniser)
    half = tmp_path / "half"
    shutil.copytree(roberta, half)
    save_file({"embeddings.position_ids": torch.arange(3)}, half / "model.safetensors")
    wrong = {
        "chexbert": picture,
        "bert": roberta,
        "radgraph": picture,
        "radgraph_bert": roberta,
        "ratescore_ner": recogniser,
        "ratescore_synonyms": half,
    }[option]
    given: Any = {option: wrong}
    with pytest.raises(AnswersError, match=says) as caught:
        open_instruments([metric], InstrumentPaths(**given))
    assert str(caught.value).startswith(f"{wrong}: ")


def test_a_torch_file_of_another_model_is_named_without_bert(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model_state_dict": {"bert.pooler.weight": torch.zeros(2)}}, path)
    with pytest.raises(AnswersError, match=r"x\.pth: holds no `linear_heads`, as chexbert\.pth"):
        open_instruments(["chexbert"], InstrumentPaths(chexbert=path))


def test_given_paths_are_opened_and_identified(
    chexbert: Path, bert: Path, ner: Path, tmp_path: Path
) -> None:
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps({}), "utf-8")
    found = open_instruments(
        REPORT_METRICS,
        InstrumentPaths(
            bertscore=bert,
            bertscore_layer=1,
            chexbert=chexbert,
            bert=bert,
            annotations=(annotations,),
            ratescore_ner=ner,
            ratescore_synonyms=bert,
        ),
    )
    assert not found.missing
    assert found.bertscore is not None
    assert found.bertscore.label == f"{bert.name} layer 1"
    assert None not in (found.chexbert, found.radgraph, found.ratescore)
    assert [each["path"] for each in found.files["chexbert"]] == [str(chexbert), str(bert)]
    digests = {each["sha256"] for files in found.files.values() for each in files}
    assert len(digests) == 4


def test_radgraphs_model_and_annotations_exclude_each_other(tmp_path: Path) -> None:
    annotations = tmp_path / "annotations.json"
    annotations.write_text("{}", "utf-8")
    nowhere = tmp_path / "not there"
    for paths in (
        InstrumentPaths(annotations=(annotations,), radgraph=nowhere),
        InstrumentPaths(annotations=(annotations,), radgraph_bert=nowhere),
    ):
        with pytest.raises(AnswersError, match="or --radgraph and --radgraph-bert, not both"):
            open_instruments(["radgraph"], paths)


def test_models_are_found_in_a_folder_of_ones_own(
    chexbert: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(bert, own / "bert-base-uncased")
    shutil.copy(chexbert, own)
    monkeypatch.setenv(FOLDER_VARIABLE, str(own))
    found = open_instruments(["chexbert", "bertscore"], InstrumentPaths())
    assert found.chexbert is not None
    assert list(found.missing) == ["bertscore"]
    (own / "roberta-large").mkdir()
    with pytest.raises(AnswersError, match=r"is no folder with a config\.json"):
        open_instruments(["bertscore"], InstrumentPaths())


def test_an_archive_may_be_unpacked(radgraph: Path, radgraph_bert: Path, tmp_path: Path) -> None:
    paths = InstrumentPaths(radgraph=radgraph, radgraph_bert=radgraph_bert)
    found = open_instruments(["radgraph"], paths)
    assert found.radgraph is not None
    assert found.files["radgraph"][0]["sha256"] != found.files["radgraph"][1]["sha256"]
    with pytest.raises(AnswersError, match=r"is no file; --radgraph takes radgraph\.tar\.gz"):
        open_instruments(["radgraph"], InstrumentPaths(radgraph=tmp_path))


def test_models_are_found_in_the_hub_cache(nothing_there: Path, chexbert: Path, bert: Path) -> None:
    in_hub(nothing_there, "StanfordAIMI/RRG_scorers", chexbert)
    in_hub(nothing_there, "google-bert/bert-base-uncased", *bert.iterdir())
    assert CHEXBERT.find(None) is not None
    assert BERT.find(None) is not None
    found = open_instruments(["chexbert"], InstrumentPaths())
    assert found.chexbert is not None


def test_a_part_of_a_model_in_the_hub_cache_is_none(nothing_there: Path, bert: Path) -> None:
    config, vocabulary, weights = (
        bert / name for name in ("config.json", "tokenizer.json", "model.safetensors")
    )
    in_hub(nothing_there, "FacebookAI/roberta-large", config, vocabulary)
    in_hub(nothing_there, "google-bert/bert-base-uncased", config)
    found = open_instruments(["bertscore", "chexbert"], InstrumentPaths())
    assert set(found.missing) == {"bertscore", "chexbert"}
    assert "FacebookAI/roberta-large with model.safetensors in" in found.missing["bertscore"]
    assert BERT.find(None) is None
    # A second repository that is whole will do.
    in_hub(nothing_there, "roberta-large", config, vocabulary, weights)
    found_at = BERTSCORE.find(None)
    assert found_at is not None
    assert "models--roberta-large" in found_at.parts


def test_a_folder_without_weights_is_refused_and_named(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(bert, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(AnswersError, match=r"bare: cannot be loaded as AutoModel: .*safetensors"):
        open_instruments(["bertscore"], InstrumentPaths(bertscore=folder, bertscore_layer=1))
