"""RadGraph 1.0: the network, and its published archive of configuration, labels and weights."""

import io
import json
import math
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertModel

from ..metrics.radgraph import Annotation, Entity
from ..predictions import AnswersError
from .local_model import best_device, fill, load_bert, load_tensors, refuse_not_finite

Span = tuple[int, int]
"""First and last word."""

_MARKS = re.compile(r"([/,:.!?()])")
_BERT = "_embedder.token_embedder_bert._matched_embedder.transformer_model."
# Parts for tasks other than entities and relations, which the published training includes.
_IDLE = ("_coref.", "_events.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RadGraphSizes:
    """Sizes of the network, from the archive's configuration.

    Attributes:
        max_span_width: most words of an entity.
        feature_size: width of the vector that stands for a span's length.
        layers: of every feed-forward network.
        hidden: their width.
        spans_per_word: share of spans that may have relations, as spans per word of the text.
        max_pieces: word pieces that BERT reads at a time, special tokens included.
        entities: number of kinds, "none" left out.
        relations: number of kinds, "none" left out.
    """

    max_span_width: int
    feature_size: int
    layers: int
    hidden: int
    spans_per_word: float
    max_pieces: int
    entities: int
    relations: int


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """Content of the archive.

    Attributes:
        sizes: of the network.
        entities: kinds of them, "none" left out.
        relations: the same.
        weights: under the names of `RadGraphModel`.
    """

    sizes: RadGraphSizes
    entities: list[str]
    relations: list[str]
    weights: dict[str, Tensor]


class RadGraphModel(nn.Module):
    """Finds entities and relations in a text that was cut into words."""

    def __init__(self, bert: Any, sizes: RadGraphSizes) -> None:
        super().__init__()
        self.sizes = sizes
        span = 2 * bert.hidden_size + sizes.feature_size
        self.bert = BertModel(bert)
        self.width = nn.Embedding(sizes.max_span_width, sizes.feature_size)
        self.entity = _Scorer(span, sizes, sizes.entities)
        self.mention = _Scorer(span, sizes, 1)
        self.relation = _Scorer(3 * span, sizes, sizes.relations)

    @torch.inference_mode()
    def forward(
        self, words: list[list[int]], opening: int, closing: int
    ) -> tuple[dict[Span, int], list[tuple[Span, Span, int]]]:
        """Return kinds of entities by span, and related pairs of spans with their kind.

        Args:
            words: word pieces of every word; a word may have none.
            opening: token that opens what BERT reads.
            closing: token that closes it.
        """
        vectors = self._words(words, opening, closing)
        last = len(words) - 1
        spans = [
            (start, end)
            for start in range(len(words))
            for end in range(start, min(start + self.sizes.max_span_width - 1, last) + 1)
        ]
        start, end = torch.tensor(spans, device=vectors.device).unbind(dim=1)
        embedded = torch.cat([vectors[start], vectors[end], self.width(end - start)], dim=1)
        kinds = _kinds(self.entity(embedded)).tolist()
        entities = {span: kind for span, kind in zip(spans, kinds, strict=True) if kind >= 0}
        return entities, list(self._relations(spans, embedded, len(words)))

    def _words(self, words: list[list[int]], opening: int, closing: int) -> Tensor:
        """Return a vector per word, [words, D]: the mean of its pieces, 0 for a word without."""
        device = self.width.weight.device
        step = self.sizes.max_pieces - 2
        pieces = torch.tensor([piece for word in words for piece in word], device=device)
        # A long text is read in parts; no part sees another.
        cut = [pieces[at : at + step] for at in range(0, len(pieces), step)]
        frame = (torch.tensor([opening], device=device), torch.tensor([closing], device=device))
        parts = [torch.cat([frame[0], part, frame[1]]) for part in cut]
        ids = pad_sequence(parts, batch_first=True)
        mask = pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        inner = [row[1 : 1 + len(part)] for row, part in zip(hidden, cut, strict=True)]
        ends = accumulate(len(word) for word in words)
        flat = torch.cat(inner)
        means = [
            flat[end - len(word) : end].mean(dim=0) if word else flat.new_zeros(flat.shape[1])
            for word, end in zip(words, ends, strict=True)
        ]
        return torch.stack(means)

    def _relations(
        self, spans: list[Span], embedded: Tensor, words: int
    ) -> Iterator[tuple[Span, Span, int]]:
        """Yield related pairs among the spans that most look like mentions."""
        mentions = self.mention(embedded)[:, 0]
        keep = min(math.ceil(words * self.sizes.spans_per_word), len(spans))
        top = mentions.topk(keep).indices.sort().values
        vectors, scores = embedded[top], mentions[top]
        for first, vector, score in zip(top.tolist(), vectors, scores, strict=True):
            # One first span at a time: all pairs at once take a gigabyte for a long report.
            pairs = torch.cat([vector.expand_as(vectors), vectors, vector * vectors], dim=1)
            kinds = _kinds(self.relation(pairs) + (score + scores)[:, None])
            for second, kind in zip(top.tolist(), kinds.tolist(), strict=True):
                if kind >= 0:
                    yield spans[first], spans[second], kind


class RadGraphReader:
    """Annotates reports with RadGraph 1.0.

    Attributes:
        package: distribution that the network runs on.
    """

    package = "transformers"

    def __init__(
        self, model: RadGraphModel, tokenizer: Any, entities: list[str], relations: list[str]
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._entities = entities
        self._relations = relations

    @classmethod
    def open(cls, archive: Path, bert: Path) -> "RadGraphReader":
        """Load the archive; it holds BERT's weights too.

        Args:
            archive: `radgraph.tar.gz`, or the folder with its files.
            bert: folder of the BERT that its config.json names; only configuration and
                vocabulary are read.

        Raises:
            AnswersError: the archive is another model's, is damaged, or needs code to be read.
        """
        content = read_archive(archive)
        config, tokenizer = read_radgraph_bert(bert)
        model = RadGraphModel(config, content.sizes)
        fill(model, content.weights, f"{archive}: does not fit RadGraph on {bert}")
        return cls(model.to(best_device()).eval(), tokenizer, content.entities, content.relations)

    def of(self, texts: Iterable[str]) -> dict[str, Annotation]:
        """Return the annotation of every text; a blank one has no entities."""
        return {text: self._annotate(cut_words(text)) for text in texts}

    def _annotate(self, words: list[str]) -> Annotation:
        if not words:
            return {}
        pieces = self._tokenizer(words, add_special_tokens=False)["input_ids"]
        if not any(pieces):
            return {}
        spans, pairs = self._model(
            pieces, self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        )
        keys = {span: str(number) for number, span in enumerate(spans, start=1)}
        related: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
        for one, other, relation in pairs:
            if other in keys:
                related[one].append((self._relations[relation], keys[other]))
        return {
            keys[first, last]: Entity(
                " ".join(words[first : last + 1]),
                self._entities[kind],
                tuple(related[first, last]),
            )
            for (first, last), kind in spans.items()
        }


def read_archive(archive: Path) -> Archive:
    """Read and check the archive, as far as that needs no BERT.

    Raises:
        AnswersError: it is another model's, is damaged, or needs code to be read.
    """
    files = _Files(archive)
    namespace, entities, relations = _vocabulary(archive, files)
    sizes = _sizes(archive, files, len(entities), len(relations))
    name = f"{archive}: weights.th"
    tensors = load_tensors(io.BytesIO(files.read("weights.th")), name)
    if not all(isinstance(value, Tensor) for value in tensors.values()):
        raise AnswersError(f"{name}: holds no state dict")
    weights = _own_names(tensors, namespace)
    refuse_not_finite(weights, name)
    return Archive(sizes, entities, relations, weights)


def read_radgraph_bert(folder: Path) -> tuple[Any, Any]:
    """Return configuration and tokenizer of RadGraph's BERT.

    Raises:
        AnswersError: the folder cannot be loaded, or is another kind of model's.
    """
    return load_bert(folder, "--radgraph-bert")


def cut_words(text: str) -> list[str]:
    """Cut a report at blanks and around / , : . ! ? ( ), as RadGraph 1.0 does; hyphens stay."""
    return _MARKS.sub(r" \1 ", text).split()


class _Files:
    """Reads the files of an archive, packed or not; nothing is unpacked to disk."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._members: dict[str, bytes] = {}
        if archive.is_dir():
            return
        try:
            with tarfile.open(archive) as packed:
                for member in packed:
                    inside = packed.extractfile(member) if member.isfile() else None
                    if inside is not None:
                        self._members[member.name.removeprefix("./")] = inside.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise AnswersError(f"{archive}: cannot be read as a tar archive: {error}") from None

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        try:
            if self._archive.is_dir():
                return (self._archive / name).read_bytes()
            return self._members[name]
        except (OSError, KeyError):
            raise AnswersError(
                f"{self._archive}: holds no {name}, as radgraph.tar.gz does"
            ) from None

    def named(self, ending: str) -> list[str]:
        """Return the names below vocabulary/ that end so."""
        if self._archive.is_dir():
            names = [f"vocabulary/{path.name}" for path in self._archive.glob("vocabulary/*")]
        else:
            names = list(self._members)
        return sorted(n for n in names if n.startswith("vocabulary/") and n.endswith(ending))


def _vocabulary(archive: Path, files: _Files) -> tuple[str, list[str], list[str]]:
    """Return what the archive calls its data set, and the kinds of entities and relations."""
    ending = "__ner_labels.txt"
    names = files.named(ending)
    if len(names) != 1:
        raise AnswersError(f"{archive}: holds {len(names)} files vocabulary/*{ending}, not one")
    namespace = names[0].removeprefix("vocabulary/").removesuffix(ending)
    if "xl" in namespace or "echo" in namespace:
        raise AnswersError(
            f"{archive}: is {namespace}, which cuts words in another way than RadGraph 1.0; "
            "annotate with the package radgraph, see docs/metrics.md"
        )
    none, *entities = files.read(names[0]).decode().split("\n")
    relations = files.read(f"vocabulary/{namespace}__relation_labels.txt").decode().split("\n")
    if none:
        raise AnswersError(f"{archive}: {names[0]} must begin with an empty line, for no entity")
    return namespace, [e for e in entities if e], [r for r in relations if r]


def _sizes(archive: Path, files: _Files, entities: int, relations: int) -> RadGraphSizes:
    try:
        model = json.loads(files.read("config.json"))["model"]
        if model["modules"]["coref"].get("coref_prop", 0):
            raise AnswersError(f"{archive}: propagates between spans, which RadGraph 1.0 does not")
        return RadGraphSizes(
            max_span_width=int(model["max_span_width"]),
            feature_size=int(model["feature_size"]),
            layers=int(model["feedforward_params"]["num_layers"]),
            hidden=int(model["feedforward_params"]["hidden_dims"]),
            spans_per_word=float(model["modules"]["relation"]["spans_per_word"]),
            max_pieces=int(model["embedder"]["token_embedders"]["bert"]["max_length"]),
            entities=entities,
            relations=relations,
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise AnswersError(f"{archive}: config.json is not RadGraph's ({error})") from None


def _own_names(weights: Mapping[str, Tensor], namespace: str) -> dict[str, Tensor]:
    """Return the tensors under the names of `RadGraphModel`."""
    entity = f"_ner._ner_scorers.{namespace}__ner_labels."
    mention = f"_relation._mention_pruners.{namespace}__relation_labels._scorer."
    hidden = f"_relation._relation_feedforwards.{namespace}__relation_labels."
    prefixes = {
        _BERT: "bert.",
        "_endpoint_span_extractor._span_width_embedding.": "width.",
        f"{entity}0._module._linear_layers.": "entity.hidden.",
        f"{entity}1._module.": "entity.last.",
        f"{mention}0._module._linear_layers.": "mention.hidden.",
        f"{mention}1._module.": "mention.last.",
        f"{hidden}_linear_layers.": "relation.hidden.",
        f"_relation._relation_scorers.{namespace}__relation_labels.": "relation.last.",
    }
    renamed = {}
    for name, tensor in weights.items():
        if not name.startswith(_IDLE):
            old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
            renamed[prefixes.get(old, "") + name.removeprefix(old)] = tensor
    return renamed


class _Scorer(nn.Module):
    """Scores vectors [..., width] for every kind, [..., kinds]."""

    def __init__(self, width: int, sizes: RadGraphSizes, kinds: int) -> None:
        super().__init__()
        widths = [width, *[sizes.hidden] * sizes.layers]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.last = nn.Linear(widths[-1], kinds)

    def forward(self, vectors: Tensor) -> Tensor:
        for layer in self.hidden:
            vectors = layer(vectors).relu()
        scores: Tensor = self.last(vectors)
        return scores


def _kinds(scores: Tensor) -> Tensor:
    """Return the best kind, or -1 where "none", whose score is 0, is better."""
    best, kind = scores.max(dim=-1)
    return kind.where(best > 0, -1)
