"""Where the models of metrics are: at a given path, in a folder of one's own, in the hub cache."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentPaths:
    """What a user says of where the models of metrics are; None lets them be looked for.

    Attributes:
        bertscore: folder of a BERT or RoBERTa.
        bertscore_layer: layer whose output BERTScore compares; None knows that of roberta-large.
        chexbert: checkpoint file.
        bert: folder of bert-base-uncased, of which CheXbert takes configuration and vocabulary.
        radgraph: RadGraph's archive, or the folder with its files.
        radgraph_bert: folder of its BERT, of which configuration and vocabulary are taken.
        annotations: JSON files with RadGraph's annotations, in place of the archive.
        ratescore_ner: folder of RaTEScore's model that finds entities.
        ratescore_synonyms: folder of RaTEScore's model that says what entities mean.
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
        name: of its folder or file in the folder of one's own.
        option: that gives its path.
        hub: names of the Hugging Face repositories that hold it.
        file: that must be there: the model itself, or one in its folder.
        unpacked: a file that shows a folder to be the same model, unpacked.
        beside: what a folder in the hub cache must hold too, of each one of several files: other
            programs leave parts of models there.
    """

    name: str
    option: str
    hub: tuple[str, ...]
    file: str = "config.json"
    unpacked: str | None = None
    beside: tuple[tuple[str, ...], ...] = ()

    def find(self, given: Path | None) -> Path | None:
        """Return where the model is, or None if it is nowhere; nothing is fetched.

        Raises:
            AnswersError: the given path, or the folder of one's own, has something else there.
        """
        if given is not None:
            return self._checked(given)
        own = os.environ.get(FOLDER_VARIABLE)
        if own and (Path(own) / self.name).exists():
            return self._checked(Path(own) / self.name)
        for repository in self.hub:
            found = try_to_load_from_cache(repository, self.file)
            if isinstance(found, str) and self._whole(Path(found).parent):
                return Path(found) if self._is_file else Path(found).parent
        return None

    def looked_for(self) -> str:
        """Say what is needed and where it may be, for a user who has it not."""
        return (
            f"{self.name} at {self.option} {'FILE' if self._is_file else 'DIR'}, "
            f"${FOLDER_VARIABLE}/{self.name} or {self.hub[0]}{self._wanted()} in "
            f"{constants.HF_HUB_CACHE}"
        )

    def _wanted(self) -> str:
        return "".join(f" with {files[0]}" for files in self.beside[:1])

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
        wanted = "is no file" if self._is_file else f"is no folder with a {self.file}"
        raise AnswersError(f"{path}: {wanted}; {self.option} takes {self.name}")


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


Opened = TypeVar("Opened")

_ALONE: Final[Mapping[Need, Callable[[Path], object]]] = {
    CHEXBERT: read_checkpoint,
    BERT: read_bert,
    RADGRAPH: read_archive,
    RADGRAPH_BERT: read_radgraph_bert,
    RATESCORE_NER: load_recogniser,
    RATESCORE_SYNONYMS: load_synonyms,
}
"""How the models of a metric that needs two are read one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """Hold the models and annotations that were found; None stands for what was not.

    Attributes:
        bertscore: for BERTScore.
        chexbert: for CheXbert.
        radgraph: for RadGraph.
        ratescore: for RaTEScore.
        missing: metric -> what it needs and where that was looked for.
        files: metric -> path and SHA-256 of everything that decides its scores.
    """

    bertscore: BertScorer | None = None
    chexbert: Chexbert | None = None
    radgraph: Annotations | RadGraphReader | None = None
    ratescore: RateReader | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)


def open_instruments(wanted: Collection[str], paths: InstrumentPaths) -> Instruments:
    """Open what metrics need.

    Args:
        wanted: metrics, of `REPORT_METRICS`.
        paths: where a user says that models are.

    Raises:
        AnswersError: a path that was given is wrong, what is there cannot be used, or both
            RadGraph's model and annotations were given.
    """
    if paths.annotations and (paths.radgraph or paths.radgraph_bert):
        raise AnswersError(
            "--radgraph-annotations stands in place of RadGraph's model: give it, or --radgraph "
            "and --radgraph-bert, not both"
        )
    missing: dict[str, str] = {}
    found: dict[str, list[Path]] = {}
    for metric, given in _needs(paths).items():
        if metric in wanted:
            places = {need: need.find(path) for need, path in given.items()}
            absent = [need.looked_for() for need, path in places.items() if path is None]
            if absent:
                _refuse_wrong(given)
                missing[metric] = f"needs {'; and '.join(absent)}"
            else:
                found[metric] = [path for path in places.values() if path is not None]
    if "radgraph" in wanted and paths.annotations:
        found["radgraph"] = list(paths.annotations)
    return Instruments(
        bertscore=_open(found, "bertscore", partial(BertScorer.open, layer=paths.bertscore_layer)),
        chexbert=_open(found, "chexbert", Chexbert.open),
        radgraph=_open(found, "radgraph", _radgraph(paths)),
        ratescore=_open(found, "ratescore", RateReader.open),
        missing=missing,
        files={metric: [identify(path) for path in each] for metric, each in found.items()},
    )


def _refuse_wrong(given: Mapping[Need, Path | None]) -> None:
    """Read what a user gave of a metric that lacks another model, which says if it is wrong.

    Raises:
        AnswersError: it is.
    """
    for need, path in given.items():
        if path is not None:
            _ALONE[need](path)


def _needs(paths: InstrumentPaths) -> dict[str, dict[Need, Path | None]]:
    """Return the models of every metric, each with the path that was given."""
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


def _radgraph(paths: InstrumentPaths) -> Callable[..., Annotations | RadGraphReader]:
    return Annotations.open if paths.annotations else RadGraphReader.open


def _open(found: dict[str, list[Path]], metric: str, make: Callable[..., Opened]) -> Opened | None:
    """Open a metric's models if all of them were found."""
    return make(*found[metric]) if metric in found else None
