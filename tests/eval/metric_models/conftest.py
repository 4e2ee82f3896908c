import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from medalign.eval.metrics.labels import LABELS
from medalign.eval.metrics.ratescore import TYPES

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ","]
_PLAIN = ["the", "heart", "is", "normal", "lungs", "are", "clear", "no", "small", "left"]
_CLINICAL = ["pleural", "effusion", "pneumothorax", "edema", "report", "generated"]
WORDS = [*_SPECIAL, *_PLAIN, *_CLINICAL]
ENTITIES = {  # word -> what the tiny recogniser calls it
    "heart": "B-ANATOMY",
    "lungs": "B-ANATOMY",
    "pleural": "B-DISEASE",
    "effusion": "I-DISEASE",
    "pneumothorax": "B-NON-DISEASE",
    "edema": "B-ABNORMALITY",
}
WIDTH = 32
LONGEST = 24


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def bert_config(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=WIDTH,
        max_position_embeddings=LONGEST,
        initializer_range=1.0,  # so that texts are told apart without training
        **more,
    )


def save_bert_tokenizer(folder: Path) -> None:
    make: Any = BertTokenizer
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    make(vocab=vocabulary, model_max_length=LONGEST).save_pretrained(folder)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(bert_config()).save_pretrained(folder)
    save_bert_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa whose tokenizer tells "lung" from " lung", as the published one does."""
    folder = tmp_path_factory.mktemp("roberta")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("l", "u"), ("lu", "n"), ("lun", "g"), ("\u0120", "lung")]
    vocabulary = [*special, *letters, *("".join(pair) for pair in merges)]
    config: Any = RobertaConfig
    model = RobertaModel(
        config(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=WIDTH,
            max_position_embeddings=LONGEST + 2,
        )
    )
    weights = {name: by_formula(name, tuple(v.shape)) for name, v in model.state_dict().items()}
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    make: Any = RobertaTokenizer
    make(vocab={word: n for n, word in enumerate(vocabulary)}, merges=merges).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def chexbert_weights() -> dict[str, Tensor]:
    """Tensors under the names of the published checkpoint, `module.` and counters included."""
    torch.manual_seed(1)
    weights = {f"module.bert.{k}": v for k, v in BertModel(bert_config()).state_dict().items()}
    weights["module.bert.embeddings.position_ids"] = torch.arange(LONGEST)[None]
    for head in range(len(LABELS)):
        classes = 2 if head == len(LABELS) - 1 else 4
        weights[f"module.linear_heads.{head}.weight"] = 5 * torch.randn(classes, WIDTH)
        weights[f"module.linear_heads.{head}.bias"] = torch.randn(classes)
    return weights


@pytest.fixture(scope="session")
def chexbert(tmp_path_factory: pytest.TempPathFactory, chexbert_weights: dict[str, Tensor]) -> Path:
    """A checkpoint file as the published one is made."""
    path = tmp_path_factory.mktemp("chexbert") / "chexbert.pth"
    content = {"epoch": 7, "model_state_dict": chexbert_weights, "optimizer_state_dict": {}}
    torch.save(content, path)
    return path


@pytest.fixture(scope="session")
def ner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser that labels every word by itself, as `ENTITIES` says."""
    folder = tmp_path_factory.mktemp("ner")
    labels = ["O", *(f"{edge}-{kind}" for kind in TYPES for edge in "BI")]
    model = BertForTokenClassification(
        bert_config(id2label=dict(enumerate(labels)), label2id={n: k for k, n in enumerate(labels)})
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
        # Every word a direction of its own, which all the zeros leave alone.
        model.bert.embeddings.word_embeddings.weight.copy_(torch.eye(WIDTH)[: len(WORDS)])
        model.classifier.bias[0] = 1.0
        for word, label in ENTITIES.items():
            model.classifier.weight[labels.index(label), WORDS.index(word)] = 1.0
    model.save_pretrained(folder)
    save_bert_tokenizer(folder)
    return folder


RADGRAPH_WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] . , the heart is normal lungs are clear no small left pleural "
    "ef ##fusion pneumothorax edema none a b"
)
RADGRAPH_KINDS = (
    "",
    "Observation::definitely present",
    "Anatomy::definitely present",
    "Observation::definitely absent",
    "Observation::uncertain",
)
RADGRAPH_RELATIONS = ("modify", "located_at", "suggestive_of")


@pytest.fixture(scope="session")
def radgraph_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration and vocabulary of the tiny archive's BERT, without its weights."""
    folder = tmp_path_factory.mktemp("radgraph_bert")
    config = BertConfig(
        vocab_size=25,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    config.save_pretrained(folder)
    make: Any = BertTokenizer
    vocabulary = {word: number for number, word in enumerate(RADGRAPH_WORDS.split())}
    make(vocab=vocabulary, model_max_length=16).save_pretrained(folder)
    return folder


def by_formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that need no random numbers, as golden_radgraph.json was made with."""
    seed = zlib.crc32(name.encode())
    k = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    values = torch.sin(k * k * (0.23 + (seed % 89) / 89) + k + seed % 1000)
    if name.endswith("LayerNorm.weight"):
        values = 1 + 0.1 * values
    if name.endswith("ner_labels.1._module.bias"):
        values = values - 2.5
    if "relation_labels._linear_layers" in name or "_relation_scorers" in name:
        values = 2 * values
    return values.float().reshape(shape)


def radgraph_shapes(bert: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in weights.th, as the package lays them out; H 8, span 2 * 8 + 4."""
    prefix = "_embedder.token_embedder_bert._matched_embedder.transformer_model."
    state = BertModel(BertConfig.from_pretrained(bert)).state_dict()
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in state.items()}
    entity = "_ner._ner_scorers.radgraph__ner_labels"
    mention = "_relation._mention_pruners.radgraph__relation_labels._scorer"
    pair = "_relation._relation_feedforwards.radgraph__relation_labels"
    layers = {
        f"{entity}.0._module._linear_layers.0": (6, 20),
        f"{entity}.0._module._linear_layers.1": (6, 6),
        f"{entity}.1._module": (4, 6),
        f"{mention}.0._module._linear_layers.0": (6, 20),
        f"{mention}.0._module._linear_layers.1": (6, 6),
        f"{mention}.1._module": (1, 6),
        f"{pair}._linear_layers.0": (6, 60),
        f"{pair}._linear_layers.1": (6, 6),
        "_relation._relation_scorers.radgraph__relation_labels": (3, 6),
        "_coref._antecedent_scorer._module": (1, 6),  # idle, as in the published archive
    }
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes["_endpoint_span_extractor._span_width_embedding.weight"] = (3, 4)
    shapes["_events._distance_embedding.weight"] = (10, 4)
    return shapes


@pytest.fixture(scope="session")
def radgraph(tmp_path_factory: pytest.TempPathFactory, radgraph_bert: Path) -> Path:
    """A tiny archive, laid out as the published one is."""
    folder = tmp_path_factory.mktemp("radgraph")
    (folder / "vocabulary").mkdir()
    for name, words in (("ner", RADGRAPH_KINDS), ("relation", RADGRAPH_RELATIONS)):
        file = folder / "vocabulary" / f"radgraph__{name}_labels.txt"
        file.write_text("\n".join(words) + "\n", "utf-8")
    (folder / "vocabulary" / "non_padded_namespaces.txt").write_text("*labels\n*tags\n", "utf-8")
    model = {
        "type": "dygie",
        "embedder": {"token_embedders": {"bert": {"max_length": 12}}},
        "feature_size": 4,
        "max_span_width": 3,
        "feedforward_params": {"num_layers": 2, "hidden_dims": 6, "dropout": 0.4},
        "modules": {"coref": {"coref_prop": 0}, "ner": {}, "relation": {"spans_per_word": 0.5}},
    }
    (folder / "config.json").write_text(json.dumps({"model": model}), "utf-8")
    shapes = radgraph_shapes(radgraph_bert)
    torch.save(
        {name: by_formula(name, shape) for name, shape in shapes.items()}, folder / "weights.th"
    )
    return folder


@pytest.fixture(scope="session")
def radgraph_packed(radgraph: Path) -> Path:
    """The same archive, packed."""
    path = radgraph.with_name("radgraph.tar.gz")
    with tarfile.open(path, "w:gz") as packed:
        packed.add(radgraph, arcname=".")
    return path
