"""Score a predictions file against its manifest, with intervals and definitions."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..pipeline.manifest import read_manifest
from .answers import Answer, AnswersError, Pair, Task, join, read_answers
from .metrics.definitions import Definition, report_definitions, vqa_definitions
from .metrics.interval import LEVEL, RESAMPLES, SEED, bootstrap_interval
from .sample_scores import SampleScores, report_scores, vqa_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Hold one metric: value and interval in percent, and what they mean."""

    name: str
    protocol: str
    value: float
    interval: tuple[float, float]
    unit: str
    n: int
    definition: str
    package: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Hold everything a scores file says.

    Attributes:
        task: "vqa" or "report".
        manifest: path and sha256 of the manifest.
        predictions: path and sha256 of the predictions.
        medalign: version that scored.
        decoder: decoder of the predictions.
        seeds: seeds of the predictions, sorted.
        wordnet: version of the WordNet that METEOR used; None for none, or for another task.
        counts: how many records, answers, ...
        interval: how the intervals were computed.
        metrics: the scores; a metric no sample applies to is left out.
    """

    task: Task
    manifest: Mapping[str, str]
    predictions: Mapping[str, str]
    medalign: str
    decoder: str
    seeds: Sequence[int]
    wordnet: str | None
    counts: Mapping[str, int]
    interval: Mapping[str, Any]
    metrics: Sequence[Score]

    def to_json(self) -> str:
        """Return the scores as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the scores to a file, whole or not at all; missing folders are made.

        Raises:
            AnswersError: the file cannot be written.
        """
        draft = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(self.to_json(), encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            reason = (error.strerror or "error").lower()
            raise AnswersError(f"{path}: cannot be written: {reason}") from None


def score(predictions: Path, manifest: Path, task: Task, *, allow_missing: bool = False) -> Scores:
    """Score predictions against a manifest; the order of either file does not matter.

    Args:
        predictions: predictions file, JSON Lines.
        manifest: the manifest they answer.
        task: "vqa" or "report".
        allow_missing: count records without an answer as wrong, instead of refusing.

    Raises:
        AnswersError: the two do not fit, see `answers.read_answers` and `answers.join`.
        ManifestError: the manifest is broken.
    """
    answers = read_answers(predictions)
    records = read_manifest(manifest)
    try:
        pairs = join(answers, records, task, allow_missing=allow_missing)
    except AnswersError as error:
        raise AnswersError(f"{predictions} against {manifest}: {error}") from None
    wordnet = None
    if task == "vqa":
        samples, counts = vqa_scores(pairs)
        definitions = vqa_definitions()
    else:
        samples, wordnet = report_scores(pairs)
        counts, definitions = {}, report_definitions(wordnet)
    return Scores(
        task=task,
        manifest=_named(manifest),
        predictions=_named(predictions),
        medalign=__version__,
        decoder=answers[0].decoder,
        seeds=sorted({answer.seed for answer in answers}),
        wordnet=wordnet,
        counts=_counts(pairs, answers) | counts,
        interval={
            "level": LEVEL,
            "method": "percentile bootstrap over samples",
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        metrics=_summarise(samples, definitions),
    )


def _summarise(
    samples: SampleScores, definitions: Mapping[tuple[str, str], Definition]
) -> list[Score]:
    found = []
    for (protocol, name), definition in definitions.items():
        values = samples.get((protocol, name))
        if not values:
            continue
        low, high = bootstrap_interval(values)
        package = definition.package
        version = __version__ if package == "medalign" else importlib.metadata.version(package)
        found.append(
            Score(
                name=name,
                protocol=protocol,
                value=100 * float(np.mean(values)),
                interval=(100 * low, 100 * high),
                unit="percent",
                n=len(values),
                definition=definition.sentence,
                package=package,
                version=version,
            )
        )
    return found


def _counts(pairs: Sequence[Pair], answers: Sequence[Answer]) -> dict[str, int]:
    return {
        "records": len(pairs),
        "answers": len(answers),
        "missing": sum(pair.missing for pair in pairs),
        "blank_answers": sum(not answer.text.strip() for answer in answers),
    }


def _named(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
