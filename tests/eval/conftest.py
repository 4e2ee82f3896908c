import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from medalign.eval.answers import Answer
from medalign.pipeline.manifest import Record, Turn

Write = Callable[[Path, Iterable[Mapping[str, Any]]], Path]


@pytest.fixture(scope="session")
def golden() -> Any:
    return json.loads(Path(__file__).with_name("golden_metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def answer() -> Callable[..., Answer]:
    def make(id_: str = "a", text: str = "No", **other: Any) -> Answer:
        values: dict[str, Any] = {"prompt": "Is it?", "answer": "No", "decoder": "greedy"}
        return Answer(id=id_, text=text, **{**values, "seed": 0, "new_tokens": 2, **other})

    return make


@pytest.fixture
def record() -> Callable[..., Record]:
    def make(id_: str = "a", *turns: str, answer_type: str | None = None, **more: Any) -> Record:
        roles: list[Literal["human", "gpt"]] = ["human", "gpt"]
        texts = turns or ("<image>\nIs it?", "No")
        return Record(
            id=id_,
            images=("x.png",),
            conversations=tuple(Turn(roles[at % 2], text) for at, text in enumerate(texts)),
            answer_type=answer_type,
            fields=more,
            line=1,
        )

    return make


@pytest.fixture
def write_lines() -> Write:
    def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
