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
    torch.manual_seed(0)
    config: Any = RobertaConfig
    RobertaModel(
        config(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=WIDTH,
            max_position_embeddings=LONGEST + 2,
        )
    ).save_pretrained(folder)
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
