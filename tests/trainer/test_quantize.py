from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medalign.trainer.prepared import prepare, with_paths
from medalign.trainer.recipe.recipe import Recipe, RecipeError
from medalign.trainer.student import load_base
from medalign.trainer.students.spec import StudentError
from medalign.trainer.train import train

Dataset = Callable[..., tuple[Path, Path, Path]]


def test_only_the_language_models_linear_layers_are_stored_in_four_bits(
    students: Callable[..., Path],
) -> None:
    library = pytest.importorskip("bitsandbytes", reason="extra `qlora`")
    base = load_base(students(), torch.float32, quantize="nf4")
    quantized = {
        name for name, module in base.named_modules() if isinstance(module, library.nn.Linear4bit)
    }
    linear = {
        name
        for name, module in base.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert quantized == {f"model.language_model.{name}" for name in linear}
    assert linear


def test_a_quantized_student_trains_and_resumes_bit_for_bit(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    pytest.importorskip("bitsandbytes", reason="extra `qlora`")
    manifest, images, cache = dataset()
    chosen = with_paths(
        recipe(**{"student.quantize": "nf4"}), student=students(), manifest=manifest, images=images
    )
    losses: dict[str, list[tuple[float, float]]] = {"whole": [], "cut": []}

    class KilledError(Exception):
        pass

    def run(name: str, stop_at: int | None = None) -> None:
        def report(step: object, _of: int) -> None:
            losses[name].append((step.loss, step.grad_norm))  # type: ignore[attr-defined]
            if len(losses[name]) == stop_at:
                raise KilledError

        train(chosen, cache, tmp_path / name, say=lambda _: None, report=report)

    run("whole")
    with pytest.raises(KilledError):
        run("cut", stop_at=3)
    del losses["cut"][2:]  # after the checkpoint of step 2
    run("cut")
    assert losses["cut"] == losses["whole"]
    assert losses["whole"][-1][0] < losses["whole"][0][0]


def test_what_quantizing_needs_is_said(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, images, cache = dataset()
    chosen = recipe(**{"student.quantize": "nf4", "deepspeed.stage": 3})
    given = with_paths(chosen, student=students(), manifest=manifest, images=images)
    with pytest.raises(RecipeError, match=r"quantize: nf4 needs deepspeed.stage 0, 1 or 2"):
        prepare(given, cache, world=1)
    monkeypatch.setattr("medalign.trainer.student.find_spec", lambda _: None)
    with pytest.raises(StudentError, match=r"pip install 'medalign\[qlora\]'"):
        load_base(students(), torch.float32, quantize="nf4")
