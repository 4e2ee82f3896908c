"""Prepared data sets in the place that the tasks look at, and rows made of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from PIL import Image

from medalign.eval.lmms_eval import tasks as module

QUESTIONS = (
    ("CLOSED", "Is there a fracture?", "No"),
    ("CLOSED", "Is this an X-ray?", "Yes"),
    ("OPEN", "Which organ is shown?", "the left lung"),
)


class Rows(list[Any]):
    """As much of a `datasets.Dataset` as the tasks use."""

    @classmethod
    def from_list(cls, rows: Sequence[Any]) -> Self:
        return cls(rows)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`slake` and `iu-xray-report` as `data prepare` writes them."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("slake", "iu-xray-report"):
        (folder / name / "images").mkdir(parents=True)
        lines = []
        for k, (kind, question, answer) in enumerate(QUESTIONS):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / "images" / f"{k // 2}.png")
            record: dict[str, Any] = {"id": f"q{k}", "image": f"{k // 2}.png", "qid": k}
            turns = [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ]
            report = (
                {"report": f"The heart is normal in size. {answer}."} if "report" in name else {}
            )
            lines.append(
                json.dumps({**record, "answer_type": kind, "conversations": turns} | report)
            )
        (folder / name / "test.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def placed(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDALIGN_DATA", str(data))
    return data


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def docs(placed: Path, rows: Rows) -> Callable[[str], Rows]:
    """Rows of a task by the name of its function."""
    assert placed.is_dir()
    return lambda name: getattr(module, name)(rows)
