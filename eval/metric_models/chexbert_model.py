"""CheXbert: a BERT with one head for each of 14 observations, from its published checkpoint.

Source: Smit et al., "CheXbert: combining automatic labelers and expert annotations for accurate
radiology report labeling using BERT" (2020).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel

from ..metrics.labels import LABELS
from ..predictions import AnswersError
from .local_model import (
    best_device,
    encode,
    fill,
    in_batches,
    load_bert,
    load_tensors,
    longest_input,
    refuse_not_finite,
)

_CLASSES = (4,) * (len(LABELS) - 1) + (2,)


@dataclass(frozen=True, slots=True, eq=False)
class ReadReport:
    """CheXbert's reading of one report.

    Attributes:
        vector: [D] its [CLS] vector after the last layer.
        classes: answer of each of the 14 heads.
    """

    vector: Tensor
    classes: tuple[int, ...]

    def similarity(self, other: "ReadReport") -> float:
        """Return the cosine of the two vectors."""
        return float(torch.cosine_similarity(self.vector, other.vector, dim=0))


class _Labeler(nn.Module):
    """BERT and the heads, under the names of the checkpoint."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.bert = BertModel(config)
        self.linear_heads = nn.ModuleList(
            nn.Linear(config.hidden_size, classes) for classes in _CLASSES
        )


class Chexbert:
    """Reads reports: a vector and 14 labels each."""

    def __init__(self, model: _Labeler, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, checkpoint: Path, bert: Path) -> "Chexbert":
        """Load the published checkpoint; it holds BERT's weights too.

        Args:
            checkpoint: `chexbert.pth`.
            bert: folder of bert-base-uncased; only configuration and vocabulary are read.

        Raises:
            AnswersError: the file needs code to be read, is damaged, or is another model's.
        """
        config, tokenizer = read_bert(bert)
        model = _Labeler(config)
        weights = read_checkpoint(checkpoint)
        fill(model, weights, f"{checkpoint}: does not fit CheXbert on {bert}")
        return cls(model.to(best_device()).eval(), tokenizer)

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> dict[str, ReadReport]:
        """Return the reading of every text; runs of blanks and line ends are one blank.

        Differs from the package f1chexbert: texts are read in batches, so numbers differ by
        rounding.
        """
        reports = {}
        bert = self._model.bert
        longest = longest_input(self._tokenizer, bert.config)
        for batch in in_batches(texts):
            plain = [" ".join(text.split()) for text in batch]
            encoded = encode(self._tokenizer, plain, longest, bert.device)
            vectors = bert(
                input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
            ).last_hidden_state[:, 0]
            heads = [head(vectors).argmax(dim=1).tolist() for head in self._model.linear_heads]
            for text, vector, classes in zip(batch, vectors, zip(*heads, strict=True), strict=True):
                reports[text] = ReadReport(vector, classes)
        return reports


def read_bert(folder: Path) -> tuple[Any, Any]:
    """Return configuration and tokenizer of CheXbert's BERT.

    Raises:
        AnswersError: the folder cannot be loaded, or is another kind of model's.
    """
    return load_bert(folder, "--bert")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the published checkpoint, as far as they can be judged without BERT.

    Raises:
        AnswersError: the file needs code to be read, is damaged, or has no heads of CheXbert.
    """
    content = load_tensors(path, str(path))
    weights = content.get("model_state_dict", content)
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise AnswersError(f"{path}: holds no `model_state_dict` of tensors, as chexbert.pth does")
    refuse_not_finite(weights, str(path))
    named = {key.removeprefix("module."): value for key, value in weights.items()}
    if not any(key.startswith("linear_heads.") for key in named):
        raise AnswersError(f"{path}: holds no `linear_heads`, as chexbert.pth does")
    return named
