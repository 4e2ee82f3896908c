"""Read scores files again, and find out which predictions each of them belongs to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from .metrics.interval import LEVEL
from .predictions import AnswersError, Task, reason_of
from .result_file import identify_file
from .score import NotComputed, Scores, TaskScores, known_metrics, scale

NEEDED = {
    "manifest": ("path", "sha256"),
    "predictions": ("path", "sha256"),
    "interval": ("level", "clusters", "clustered_by"),
}
"""Keys that the mappings of a scores file must have."""

_TOLERANCE = 1e-6  # of a value in its unit: another order of additions, not another definition


@dataclass(frozen=True, slots=True)
class ScoresFile:
    """A scores file.

    Attributes:
        path: of the file.
        scores: its content.
    """

    path: Path
    scores: Scores

    @classmethod
    def read(cls, path: Path) -> "ScoresFile":
        """Read a file that `eval score` wrote.

        Raises:
            AnswersError: it cannot be read, or is something else.
        """
        try:
            scores = TypeAdapter(Scores).validate_json(path.read_bytes(), strict=True)
        except OSError as error:
            raise AnswersError(f"{path}: cannot be read: {reason_of(error)}") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise AnswersError(
                f"{path}: is no scores file of `eval score`: {field + ': ' if field else ''}"
                f"{first['msg'].lower()}"
            ) from None
        for name, keys in NEEDED.items():
            if missing := [key for key in keys if key not in getattr(scores, name)]:
                raise AnswersError(
                    f"{path}: is no scores file of `eval score`: {name} has no {missing[0]}"
                )
        for metric in scores.metrics:
            if not all(map(math.isfinite, (metric.value, *(metric.interval or ())))):
                raise AnswersError(
                    f"{path}: is no scores file of `eval score`: {metric.name}, {metric.protocol} "
                    "has a value or an interval that is no number"
                )
        if scores.interval["level"] != LEVEL:
            raise AnswersError(
                f"{path}: its intervals are at level {scores.interval['level']}, all others at "
                f"{LEVEL}; run `eval score` again"
            )
        return cls(path, scores)

    def chosen(self, metrics: Sequence[str]) -> Scores:
        """Return the scores of some groups of metrics, and which of them the file lacks.

        Args:
            metrics: of `known_metrics`; all if empty.
        """
        if not metrics:
            return self.scores
        groups = known_metrics(self.scores.task)
        chosen = [metric for metric in self.scores.metrics if metric.group in metrics]
        # An undefined metric has its own name here, not that of its group.
        absent = [
            metric
            for metric in self.scores.not_computed
            if metric.name in metrics or metric.name not in groups
        ]
        covered = {metric.group for metric in chosen} | {metric.name for metric in absent}
        absent += [
            NotComputed(name=name, reason=f"{self.path} has no value of it")
            for name in metrics
            if name not in covered
        ]
        return replace(self.scores, metrics=chosen, not_computed=absent)

    def differences(self, scored: TaskScores) -> list[str]:
        """Name metrics with another value here than in the file: other versions, no WordNet.

        Args:
            scored: what the same predictions score now; metrics that it lacks are not compared.
        """
        lines = []
        for metric in self.scores.metrics:
            if metric.key in scored.definitions:
                value = scale(metric.unit) * scored.statistics[metric.key].value()
                if abs(value - metric.value) > _TOLERANCE:
                    lines.append(
                        f"{metric.name}, {metric.protocol}: {metric.value:.2f} in {self.path} "
                        f"(medalign {self.scores.medalign}), {value:.2f} as it is computed here; "
                        "samples and differences show the latter"
                    )
        return lines


def match_scores(
    files: Sequence[Path], predictions: Sequence[Path], manifest: Path, task: Task
) -> Mapping[Path, ScoresFile]:
    """Return the scores file of each predictions file that has one.

    Files are recognised by their contents, wherever they were when they were scored.

    Args:
        files: scores files.
        predictions: files that a report shows.
        manifest: that the predictions answer.
        task: "vqa" or "report".

    Raises:
        AnswersError: a scores file cannot be read, is of another task, of another manifest or of
            none of the predictions, or there are two of the same predictions.
    """
    owners = {identify_file(path)["sha256"]: path for path in predictions} if files else {}
    matched: dict[Path, ScoresFile] = {}
    for path in files:
        file = ScoresFile.read(path)
        scores = file.scores
        if scores.task != task:
            raise AnswersError(f"{path}: are scores of task {scores.task}, not of {task}")
        if scores.manifest["sha256"] != identify_file(manifest)["sha256"]:
            raise AnswersError(
                f"{path}: was scored against {scores.manifest['path']}, which is not {manifest} as "
                "it is now; run `eval score` again"
            )
        owner = owners.get(scores.predictions["sha256"])
        if owner is None:
            raise AnswersError(
                f"{path}: are scores of {scores.predictions['path']}, and none of the predictions "
                "given has the same bytes; run `eval score` again"
            )
        if owner in matched:
            raise AnswersError(f"{path} and {matched[owner].path}: are both scores of {owner}")
        matched[owner] = file
    return matched
