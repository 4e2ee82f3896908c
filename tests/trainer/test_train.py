import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medalign.trainer.loop import Step
from medalign.trainer.recipe import Recipe
from medalign.trainer.train import Result, train, with_paths

Dataset = Callable[..., tuple[Path, Path, Path]]


class StopHereError(Exception):
    """Stands for a kill between two steps."""


def run(
    recipe: Recipe,
    data: tuple[Path, Path, Path | None],
    student: Path,
    out: Path,
    stop_after: int | None = None,
    **options: Any,
) -> tuple[Result | None, list[Step]]:
    steps: list[Step] = []

    def report(step: Step, _of: int) -> None:
        steps.append(step)
        if step.step == stop_after:
            raise StopHereError

    manifest, images, cache = data
    chosen = with_paths(recipe, student=student, manifest=manifest, images=images)
    try:
        result = train(chosen, cache, out, say=lambda _: None, report=report, **options)
    except StopHereError:
        return None, steps
    return result, steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    stage: int,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    data, student = dataset(), students()
    chosen = recipe(**{"deepspeed.stage": stage, "run.steps": 5})
    _, whole = run(chosen, data, student, tmp_path / "whole")
    _, first = run(chosen, data, student, tmp_path / "cut", stop_after=3)
    _, rest = run(chosen, data, student, tmp_path / "cut")
    assert [s.step for s in first + rest] == [1, 2, 3, 3, 4, 5]  # step 3 was after the checkpoint
    for got, wanted in zip(first[:2] + rest, whole, strict=True):
        assert (got.lm, got.vis, got.att, got.grad_norm, got.lr) == (
            wanted.lm, wanted.vis, wanted.att, wanted.grad_norm, wanted.lr,
        )  # fmt: skip
    a, b = weights(tmp_path / "whole/adapter"), weights(tmp_path / "cut/adapter")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    lines = [json.loads(x) for x in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
