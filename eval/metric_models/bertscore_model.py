"""BERTScore with a local model: by default roberta-large, layer 17, no idf, no rescaling."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from ..metrics.bertscore import Matched, greedy_match
from ..predictions import AnswersError
from .local_model import BATCH, best_device, encode, load_model, load_part, longest_input

ROBERTA_LARGE_LAYER = 17
"""The layer that bert-score takes of roberta-large, chosen by its authors on WMT16."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The tokens of one text.

    Attributes:
        vectors: [T, D] float32.
        weights: [T] 0 for the tokens that open and close the text, else 1.
        tokens: [T] their numbers.
    """

    vectors: Tensor
    weights: Tensor
    tokens: Tensor


class BertScorer:
    """Scores pairs of texts by the similarity of their tokens in context.

    Attributes:
        label: model and layer, for definitions.
    """

    def __init__(self, model: Any, tokenizer: Any, label: str) -> None:
        self.label = label
        self._model = model
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, folder: Path, layer: int | None = None) -> "BertScorer":
        """Load a model of the BERT or RoBERTa family.

        Args:
            folder: local model folder.
            layer: whose output is compared, from 1; None takes that of roberta-large.

        Raises:
            AnswersError: the folder cannot be loaded, or the layer is not known or not there.
        """
        config = load_part(AutoConfig, folder)
        layer = _known_layer(folder, config) if layer is None else layer
        if not 1 <= layer <= config.num_hidden_layers:
            raise AnswersError(
                f"--bertscore-layer is {layer}, {folder} has layers 1 to {config.num_hidden_layers}"
            )
        # What comes after the layer is not even loaded.
        model = load_model(AutoModel, folder, best_device(), num_hidden_layers=layer)
        return cls(model, _load_tokenizer(folder, config), f"{folder.name} layer {layer}")

    def scores(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Matched]:
        """Return precision, recall and F1 of every (prediction, reference)."""
        ordered = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
        scores = {}
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            embedded = self.embed({text for pair in batch for text in pair})
            for pair in batch:
                text, gold = (embedded[side] for side in pair)
                scores[pair] = greedy_match(text.vectors, gold.vectors, text.weights, gold.weights)
        return scores

    @torch.inference_mode()
    def embed(self, texts: Iterable[str]) -> dict[str, Embedded]:
        """Return the tokens of every text; blanks around it do not count."""
        texts = list(texts)
        longest = longest_input(self._tokenizer, self._model.config)
        stripped = [text.strip() for text in texts]
        encoded = encode(self._tokenizer, stripped, longest, self._model.device)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        outer = torch.tensor([self._tokenizer.cls_token_id, self._tokenizer.sep_token_id])
        weights = (~torch.isin(ids, outer.to(ids))).float()
        return {
            text: Embedded(hidden[row][tokens], weights[row][tokens], ids[row][tokens])
            for row, text in enumerate(texts)
            for tokens in (mask[row].bool(),)
        }


def _known_layer(folder: Path, config: Any) -> int:
    large = (config.model_type, config.num_hidden_layers, config.hidden_size)
    if large != ("roberta", 24, 1024):
        raise AnswersError(
            f"{folder}: is not roberta-large, so the layer is not known; give --bertscore-layer "
            f"(1 to {config.num_hidden_layers})"
        )
    return ROBERTA_LARGE_LAYER


def _load_tokenizer(folder: Path, config: Any) -> Any:
    """Return the tokenizer, one that treats a text's first word like all others.

    bert-score passes `add_prefix_space` at every call. transformers 5 ignores it there and heeds
    it when loading only; scores differ in the second decimal.
    """
    if config.model_type != "roberta":
        return load_part(AutoTokenizer, folder)
    tokenizer = load_part(AutoTokenizer, folder, add_prefix_space=True)
    if tokenizer("lung")["input_ids"] != tokenizer(" lung")["input_ids"]:
        raise AnswersError(
            f"{folder}: this tokenizer gives a text's first word other tokens than the same word "
            "later on, which changes BERTScore; use the tokenizer.json of roberta-large"
        )
    return tokenizer
