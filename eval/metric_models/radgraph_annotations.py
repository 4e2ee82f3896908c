"""RadGraph annotations from JSON, as the package `radgraph` gives them."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..metrics.radgraph import Annotation, Entity
from ..predictions import AnswersError, listed, reason_of

_BLANKS = re.compile(r"\s+")
_HOW = "docs/metrics.md says how to make them"


class Annotations:
    """Knows the annotations of reports by their text.

    RadGraph sets blanks around punctuation before it reads a text, and gives the text back like
    that; so texts are compared without their blanks.

    Attributes:
        package: distribution that computes scores with these: graphs are only compared here.
    """

    package = "medalign"

    def __init__(self, annotations: Mapping[str, Annotation], source: str) -> None:
        self._annotations = annotations
        self._source = source

    @classmethod
    def open(cls, *paths: Path) -> "Annotations":
        """Read files that hold what `RadGraph()(texts)` returned, as JSON; later files win.

        Raises:
            AnswersError: a file cannot be read or holds something else.
        """
        annotations: dict[str, Annotation] = {}
        for path in paths:
            for position, value in _reports(path):
                try:
                    annotations[_key(value["text"])] = _annotation(value["entities"])
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise AnswersError(
                        f"{path}: {position} is no RadGraph annotation ({_reason(error)}); {_HOW}"
                    ) from None
        return cls(annotations, ", ".join(map(str, paths)))

    def of(self, texts: Iterable[str]) -> dict[str, Annotation]:
        """Return the annotation of every text; a blank one has no entities.

        Raises:
            AnswersError: some have none.
        """
        by_text = {text: self._annotations.get(_key(text)) for text in texts}
        absent = [text for text, own in by_text.items() if own is None and text.strip()]
        if absent:
            raise AnswersError(
                f"{self._source}: {len(absent)} of {len(by_text)} texts have no annotation: "
                f"{listed(repr(text[:60]) for text in absent)}; {_HOW}"
            )
        return {text: own or {} for text, own in by_text.items()}


def _key(text: str) -> str:
    return _BLANKS.sub("", text)


def _reports(path: Path) -> list[tuple[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnswersError(f"{path}: cannot be read: {reason_of(error)}") from None
    except (ValueError, RecursionError):
        raise AnswersError(f"{path}: is not JSON; {_HOW}") from None
    if isinstance(content, dict):
        return [(f"key {key!r}", value) for key, value in content.items()]
    if isinstance(content, list):
        return [(f"item {number}", value) for number, value in enumerate(content, start=1)]
    raise AnswersError(f"{path}: is neither a JSON object nor an array; {_HOW}")


def _annotation(entities: Any) -> Annotation:
    annotation = {
        key: Entity(
            _text(entity["tokens"]),
            _text(entity["label"]),
            tuple((_text(relation), _text(other)) for relation, other in entity["relations"]),
        )
        for key, entity in entities.items()
    }
    for entity in annotation.values():
        for _, other in entity.relations:
            if other not in annotation:
                raise ValueError(f"a relation leads to entity {other!r}, which is not there")
    return annotation


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _reason(error: Exception) -> str:
    return f"no key {error}" if isinstance(error, KeyError) else str(error)
