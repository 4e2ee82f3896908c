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
from .local_model import BATCH, best_device, load_model, load_part, longest_input

ROBERTA_LARGE_LAYER = 17
"""The layer that bert-score takes of roberta-large, chosen by its authors on WMT16."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Hold the tokens of one text.

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
        found = {}
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            read = self.embed({text for pair in batch for text in pair})
            for pair in batch:
                said, gold = read[pair[0]], read[pair[1]]
                found[pair] = greedy_match(said.vectors, gold.vectors, said.weights, gold.weights)
        return found

    @torch.inference_mode()
    def embed(self, texts: Iterable[str]) -> dict[str, Embedded]:
        """Return the tokens of every text; blanks around it do not count."""
        given = list(texts)
        encoded = self._tokenizer(
            [text.strip() for text in given],
            padding=True,
            truncation=True,
            max_length=longest_input(self._tokenizer, self._model.config),
            return_tensors="pt",
        ).to(self._model.device)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        outer = torch.tensor([self._tokenizer.cls_token_id, self._tokenizer.sep_token_id])
        weights = (~torch.isin(ids, outer.to(ids))).float()
        return {
            text: Embedded(hidden[at][kept], weights[at][kept], ids[at][kept])
            for at, text in enumerate(given)
            for kept in (mask[at].bool(),)
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

    bert-score asks RoBERTa's tokenizer for that at every call. transformers 5 ignores the wish
    there and heeds it when loading only; scores of texts differ in the second decimal.
    """
    if config.model_type != "roberta":
        return load_part(AutoTokenizer, folder)
    tokenizer = load_part(AutoTokenizer, folder, add_prefix_space=True)
    if tokenizer("lung")["input_ids"] != tokenizer(" lung")["input_ids"]:
        raise AnswersError(
            f"{folder}: this tokenizer takes a text's first word for another than the same word "
            "later on, which BERTScore must not; use the tokenizer.json of roberta-large"
        )
    return tokenizer
