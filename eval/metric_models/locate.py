"""Find the models of metrics: at an option's path, below $MEDALIGN_METRICS, in the hub cache."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from huggingface_hub import constants, try_to_load_from_cache

from ..predictions import AnswersError
from .bertscore_model import BertScorer
from .chexbert_model import Chexbert, read_bert, read_checkpoint
from .local_model import identify
from .radgraph_annotations import Annotations
from .radgraph_model import RadGraphReader, read_archive, read_radgraph_bert
from .ratescore_model import RateReader, load_recogniser, load_synonyms

FOLDER_VARIABLE = "MEDALIGN_METRICS"
"""Environment variable: a folder that holds models of metrics under the names of `Need.name`."""


Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentPaths:
    """Paths of the models of metrics, by option; None searches for a model.

    Attributes:
        bertscore: folder of a BERT or RoBERTa.
        bertscore_layer: layer whose output BERTScore compares; None takes that of roberta-large.
        chexbert: checkpoint file.
        bert: folder of bert-base-uncased; CheXbert takes its configuration and vocabulary.
        radgraph: RadGraph's archive, or the folder with its files.
        radgraph_bert: folder of RadGraph's BERT; configuration and vocabulary are taken.
        annotations: JSON files with RadGraph's annotations, in place of the archive.
        ratescore_ner: folder of RaTEScore's model that finds entities.
        ratescore_synonyms: folder of RaTEScore's model that embeds names of entities.
    """

    bertscore: Path | None = None
    bertscore_layer: int | None = None
    chexbert: Path | None = None
    bert: Path | None = None
    radgraph: Path | None = None
    radgraph_bert: Path | None = None
    annotations: tuple[Path, ...] = ()
    ratescore_ner: Path | None = None
    ratescore_synonyms: Path | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """A model that a metric needs.

    Attributes:
        name: of its folder or file below $MEDALIGN_METRICS.
        option: that gives its path.
        hub: names of the Hugging Face repositories that hold it.
        file: that must be there: the model itself, or one in its folder.
        unpacked: a file that shows a folder to be the same model, unpacked.
        beside: more files that a folder in the hub cache must hold, one of each tuple: other
            programs leave parts of models there.
    """

    name: str
    option: str
    hub: tuple[str, ...]
    file: str = "config.json"
    unpacked: str | None = None
    beside: tuple[tuple[str, ...], ...] = ()

    def find(self, option: Path | None) -> Path | None:
        """Return the path of the model, or None if it is nowhere; nothing is fetched.

        Raises:
            AnswersError: the option's path, or that below $MEDALIGN_METRICS, is something else.
        """
        if option is not None:
            return self._checked(option)
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder and (Path(folder) / self.name).exists():
            return self._checked(Path(folder) / self.name)
        for repository in self.hub:
            cached = try_to_load_from_cache(repository, self.file)
            if isinstance(cached, str) and self._whole(Path(cached).parent):
                return Path(cached) if self._is_file else Path(cached).parent
        return None

    def looked_for(self) -> str:
        """Return what is needed, and every path where it may lie."""
        beside = "".join(f" with {files[0]}" for files in self.beside[:1])
        return (
            f"{self.name} at {self.option} {'FILE' if self._is_file else 'DIR'}, "
            f"${FOLDER_VARIABLE}/{self.name} or {self.hub[0]}{beside} in {constants.HF_HUB_CACHE}"
        )

    def _whole(self, folder: Path) -> bool:
        return all(any((folder / name).is_file() for name in names) for names in self.beside)

    @property
    def _is_file(self) -> bool:
        return self.file == self.name

    def _checked(self, path: Path) -> Path:
        if self._is_file and path.is_file():
            return path
        if self.unpacked is not None and (path / self.unpacked).is_file():
            return path
        if not self._is_file and (path / self.file).is_file():
            return path
        problem = "is no file" if self._is_file else f"is no folder with a {self.file}"
        raise AnswersError(f"{path}: {problem}; {self.option} takes {self.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """The models and annotations; None for one that is not there.

    Attributes:
        bertscore: for BERTScore.
        chexbert: for CheXbert.
        radgraph: for RadGraph.
        ratescore: for RaTEScore.
        missing: metric -> what it needs, and every path where that may lie.
        files: metric -> path and SHA-256 of everything that decides its scores.
    """

    bertscore: BertScorer | None = None
    chexbert: Chexbert | None = None
    radgraph: Annotations | RadGraphReader | None = None
    ratescore: RateReader | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model")

BERTSCORE = Need(
    "roberta-large",
    "--bertscore",
    ("FacebookAI/roberta-large", "roberta-large"),
    beside=(_WEIGHTS, _VOCABULARY),
)
CHEXBERT = Need("chexbert.pth", "--chexbert", ("StanfordAIMI/RRG_scorers",), "chexbert.pth")
BERT = Need(
    "bert-base-uncased",
    "--bert",
    ("google-bert/bert-base-uncased", "bert-base-uncased"),
    beside=(_VOCABULARY,),
)
RADGRAPH = Need(
    "radgraph.tar.gz", "--radgraph", ("StanfordAIMI/RRG_scorers",), "radgraph.tar.gz", "weights.th"
)
RADGRAPH_BERT = Need(
    "BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext",
    "--radgraph-bert",
    (
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
        "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext",
    ),
    beside=(_VOCABULARY,),
)
RATESCORE_NER = Need(
    "RaTE-NER-Deberta",
    "--ratescore-ner",
    ("Angelakeke/RaTE-NER-Deberta",),
    beside=(_WEIGHTS, _VOCABULARY),
)
RATESCORE_SYNONYMS = Need(
    "BioLORD-2023-C",
    "--ratescore-synonyms",
    ("FremyCompany/BioLORD-2023-C",),
    beside=(_WEIGHTS, _VOCABULARY),
)


_ALONE: Final[Mapping[Need, Callable[[Path], object]]] = {
    CHEXBERT: read_checkpoint,
    BERT: read_bert,
    RADGRAPH: read_archive,
    RADGRAPH_BERT: read_radgraph_bert,
    RATESCORE_NER: load_recogniser,
    RATESCORE_SYNONYMS: load_synonyms,
}
"""Readers of single models, for metrics that need two."""


def open_instruments(metrics: Collection[str], paths: InstrumentPaths) -> Instruments:
    """Open the models of metrics.

    Args:
        metrics: of `REPORT_METRICS`.
        paths: of models, by option.

    Raises:
        AnswersError: an option's path is wrong, a model cannot be used, or both RadGraph's model
            and annotations were given.
    """
    if paths.annotations and (paths.radgraph or paths.radgraph_bert):
        raise AnswersError(
            "--radgraph-annotations stands in place of RadGraph's model: give it, or --radgraph "
            "and --radgraph-bert, not both"
        )
    missing: dict[str, str] = {}
    files: dict[str, list[Path]] = {}
    for metric, options in _needs(paths).items():
        if metric in metrics:
            models = {need: need.find(path) for need, path in options.items()}
            absent = [need.looked_for() for need, path in models.items() if path is None]
            if absent:
                _refuse_wrong(options)
                missing[metric] = f"needs {'; and '.join(absent)}"
            else:
                files[metric] = [path for path in models.values() if path is not None]
    if "radgraph" in metrics and paths.annotations:
        files["radgraph"] = list(paths.annotations)
    return Instruments(
        bertscore=_open(files, "bertscore", partial(BertScorer.open, layer=paths.bertscore_layer)),
        chexbert=_open(files, "chexbert", Chexbert.open),
        radgraph=_open(files, "radgraph", Annotations.open)
        if paths.annotations
        else _open(files, "radgraph", RadGraphReader.open),
        ratescore=_open(files, "ratescore", RateReader.open),
        missing=missing,
        files={metric: [identify(path) for path in own] for metric, own in files.items()},
    )


def _refuse_wrong(options: Mapping[Need, Path | None]) -> None:
    """Read the models that the user gave of a metric that lacks another one.

    The metric cannot be computed, and a wrong path shall show all the same.

    Raises:
        AnswersError: one cannot be used.
    """
    for need, path in options.items():
        if path is not None:
            _ALONE[need](path)


def _needs(paths: InstrumentPaths) -> dict[str, dict[Need, Path | None]]:
    """Return the models of every metric, each with its option's path."""
    needs: dict[str, dict[Need, Path | None]] = {
        "bertscore": {BERTSCORE: paths.bertscore},
        "chexbert": {CHEXBERT: paths.chexbert, BERT: paths.bert},
        "radgraph": {RADGRAPH: paths.radgraph, RADGRAPH_BERT: paths.radgraph_bert},
        "ratescore": {
            RATESCORE_NER: paths.ratescore_ner,
            RATESCORE_SYNONYMS: paths.ratescore_synonyms,
        },
    }
    if paths.annotations:
        del needs["radgraph"]
    return needs


def _open(files: dict[str, list[Path]], metric: str, make: Callable[..., Opened]) -> Opened | None:
    """Open a metric's models if all of them are there."""
    return make(*files[metric]) if metric in files else None
