"""RaTEScore's two models: one finds medical entities in a report, one embeds their names."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer

from ..metrics.ratescore import TYPES, Entities
from ..predictions import AnswersError
from .local_model import best_device, encode, in_batches, load_model, load_part, longest_input

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_SHORTEST = 3
_NAME_TOKENS = 30


class RateReader:
    """Finds medical entities: their type, and a vector of their meaning."""

    def __init__(self, ner: Any, ner_tokenizer: Any, synonyms: Any, tokenizer: Any) -> None:
        self._ner = ner
        self._ner_tokenizer = ner_tokenizer
        self._synonyms = synonyms
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, ner: Path, synonyms: Path) -> "RateReader":
        """Load RaTE-NER and BioLORD, or models like them.

        Raises:
            AnswersError: a folder cannot be loaded, or the first finds other entities.
        """
        return cls(*load_recogniser(ner), *load_synonyms(synonyms))

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> dict[str, Entities]:
        """Return the entities of every text, in the order of the text.

        Differs from the package RaTEScore: sentences are cut after . ! ? where blanks follow and
        at line ends, in place of medspacy's rules.
        """
        sentences = {text: _sentences(text) for text in texts}
        distinct = {sentence for cut in sentences.values() for sentence in cut}
        named: dict[str, list[tuple[str, str]]] = {}
        for batch in in_batches(sorted(distinct)):
            named |= zip(batch, self._find(batch), strict=True)
        names = {name for entities in named.values() for name, _ in entities}
        vectors: dict[str, Tensor] = {}
        for batch in in_batches(sorted(names)):
            vectors |= zip(batch, self._embed(batch), strict=True)
        return {
            text: _entities([entity for sentence in cut for entity in named[sentence]], vectors)
            for text, cut in sentences.items()
        }

    def _find(self, sentences: list[str]) -> list[list[tuple[str, str]]]:
        tokenizer = self._ner_tokenizer
        longest = longest_input(tokenizer, self._ner.config)
        encoded = encode(tokenizer, sentences, longest, self._ner.device)
        numbers = self._ner(**encoded).logits.argmax(dim=2).tolist()
        frame = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
        names = self._ner.config.id2label
        entities = []
        for ids, labels in zip(encoded["input_ids"].tolist(), numbers, strict=True):
            pairs = zip(ids, labels, strict=True)
            words = [(token, names[label]) for token, label in pairs if token not in frame]
            entities.append([(self._words(tokens), kind) for tokens, kind in spans(words)])
        return entities

    def _words(self, ids: list[int]) -> str:
        tokens = self._ner_tokenizer.convert_ids_to_tokens(ids)
        return str(self._ner_tokenizer.convert_tokens_to_string(tokens))

    def _embed(self, names: list[str]) -> Tensor:
        encoded = encode(self._tokenizer, names, _NAME_TOKENS, self._synonyms.device)
        hidden: Tensor = self._synonyms(**encoded).last_hidden_state
        return hidden[:, 0].cpu()


def load_recogniser(folder: Path) -> tuple[Any, Any]:
    """Return the model that finds entities, and its tokenizer.

    Raises:
        AnswersError: the folder cannot be loaded, or the model finds other entities.
    """
    model = load_model(AutoModelForTokenClassification, folder, best_device())
    types = {label[2:] for label in model.config.id2label.values() if label[:2] in ("B-", "I-")}
    if not types or not types <= set(TYPES):
        raise AnswersError(
            f"{folder}: finds {', '.join(sorted(types)) or 'no'} entities, RaTEScore takes a "
            f"model that finds {', '.join(TYPES)}"
        )
    return model, load_part(AutoTokenizer, folder)


def load_synonyms(folder: Path) -> tuple[Any, Any]:
    """Return the model that embeds names of entities, and its tokenizer.

    Raises:
        AnswersError: the folder cannot be loaded.
    """
    return load_model(AutoModel, folder, best_device()), load_part(AutoTokenizer, folder)


def spans(labelled: Sequence[tuple[int, str]]) -> list[tuple[list[int], str]]:
    """Return the entities of one sentence: tokens, and the type of the first.

    An entity is a token labelled B- with the I- tokens after it, whatever their type; I- without
    B- is none. That is what RaTEScore makes of its model's labels.
    """
    entities: list[tuple[list[int], str]] = []
    inside = False
    for token, label in labelled:
        if label.startswith("B-"):
            entities.append(([token], label[2:]))
            inside = True
        elif label.startswith("I-") and inside:
            entities[-1][0].append(token)
        else:
            inside = False
    return entities


def _sentences(text: str) -> list[str]:
    pieces = (piece.strip() for piece in _SENTENCE_END.split(text))
    return [piece for piece in pieces if len(piece) >= _SHORTEST]


def _entities(named: Sequence[tuple[str, str]], vectors: dict[str, Tensor]) -> Entities:
    stacked = torch.stack([vectors[name] for name, _ in named]) if named else torch.zeros(0, 0)
    return Entities(tuple(kind for _, kind in named), stacked)
