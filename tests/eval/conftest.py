import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from medalign.eval.predictions import Answer
from medalign.pipeline.manifest import Record, Turn

Write = Callable[[Path, Iterable[Mapping[str, Any]]], Path]


@pytest.fixture(scope="session")
def golden() -> Any:
    return json.loads(Path(__file__).with_name("golden_metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def asked_below() -> Callable[[Path, Mapping[str, Sequence[str]], str], None]:
    """Write two images, a broken one, and one question about the images of each id."""

    def write(folder: Path, images: Mapping[str, Sequence[str]], question: str) -> None:
        rng = np.random.default_rng(0)
        for k, shape in enumerate(((20, 40, 3), (50, 30, 3))):
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
        (folder / "broken.png").write_bytes(b"")
        lines = []
        for id_, shown in images.items():
            text = "<image>\n" * len(shown) + question
            turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "No"}]
            row: dict[str, Any] = {"id": id_, "conversations": turns}
            lines.append(json.dumps(row | ({"image": shown} if shown else {})))
        (folder / "m.jsonl").write_text("\n".join(lines) + "\n")

    return write


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


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny student: 16 visual tokens, two layers of width 32, answers that differ."""
    from medalign.trainer.machine import quiet_libraries
    from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

    quiet_libraries()
    folder = tmp_path_factory.mktemp("student")
    sizes = TinyStudent(image_size=56, width=32, layers=2, vocabulary=300, spread=0.25)
    make_student(folder, DEMO_TEXTS, sizes)
    return folder


@pytest.fixture(scope="session")
def make_adapter(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Write an adapter of `student`: LoRA and projector away from zero, and W or no rotation."""
    import torch

    from medalign.trainer.recipe.sections import LoraSection
    from medalign.trainer.student import add_adapter, load_base, save_adapter
    from medalign.trainer.students.spec import student_digest

    def make(rotation: bool) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        base = load_base(student, torch.float32)
        model = add_adapter(base, 1, LoraSection(rank=4), rotation=rotation, projector=True)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            for parameter in trained.values():
                parameter.add_(0.1 * torch.randn_like(parameter))
        recipe = {"student": {"path": str(student), "geometry": "processor"}, "loss": {"layer": 1}}
        about = {"recipe": recipe, "alpha": "black", "student": student_digest(student)}
        save_adapter(model, trained, folder, about)
        return folder

    return make


@pytest.fixture(scope="session")
def adapter(make_adapter: Callable[[bool], Path]) -> Path:
    """An adapter with a rotation."""
    return make_adapter(True)
