"""What 0.1 wrote before the code moved (`golden_run/make.py`) is still read, resumed and scored."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medalign.trainer.student import load_base, load_student

GOLDEN = Path(__file__).parent / "golden_run"
STEPS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy that a test may write to."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden", symlinks=True))


def train(medalign: Callable[..., str], folder: Path) -> str:
    changes = {"data.batch_size": 2, "data.accumulation": 1, "data.workers": 0, "loss.layer": 1}
    changes |= {"lora.rank": 2, "run.save_every": 2, "run.steps": STEPS}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    return medalign(
        *("train", "demo", "--cache", folder / "cache", "--out", folder / "run", *words),
        *("--student", folder / "student", "--manifest", folder / "manifest.jsonl"),
        *("--images", folder / "images"),
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run: Path) -> list[dict[str, float]]:
    names = ("step", "loss", "lm", "vis", "att", "grad_norm", "lr")
    return [{name: line[name] for name in names} for line in lines(run / "metrics.jsonl")]


def test_a_finished_run_is_left_as_it_is(medalign: Callable[..., str], folder: Path) -> None:
    text = train(medalign, folder)
    assert f"of the last step, {STEPS}" in text
    assert losses(folder / "run") == losses(GOLDEN / "run")
    weights = "adapter/adapter_model.safetensors"
    assert (folder / "run" / weights).read_bytes() == (GOLDEN / "run" / weights).read_bytes()


def test_a_stopped_run_is_resumed_and_ends_as_it_did(
    medalign: Callable[..., str], folder: Path
) -> None:
    run = folder / "run"
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / "step-4")
    (run / "checkpoints" / "last").unlink()
    (run / "checkpoints" / "last").symlink_to("step-2")
    train(medalign, folder)
    before, after = losses(GOLDEN / "run"), losses(run)
    assert after[:2] == before[:2]
    # The last bits of steps 3 and 4 belong to the processor that computed them.
    for old, new in zip(before[2:], after[2:], strict=True):
        assert new == pytest.approx(old, rel=1e-4)


def test_its_adapter_is_loaded_with_the_rotation() -> None:
    model = load_student(load_base(GOLDEN / "student", torch.float32), GOLDEN / "run" / "adapter")
    names = {name for name, value in model.named_parameters() if value.abs().sum() > 0}
    assert any("rotation" in name for name in names)
    assert any("lora_B" in name for name in names)


def test_its_predictions_are_complete_to_generate(
    medalign: Callable[..., str], folder: Path
) -> None:
    predictions = folder / "predictions.jsonl"
    text = medalign(
        *("eval", "generate", folder / "run", folder / "manifest.jsonl"),
        *("--images", folder / "images", "--decoder", "greedy", "--max-new-tokens", 6),
        *("--student", folder / "student", "--out", predictions),
    )
    assert "8" in text
    assert predictions.read_bytes() == (GOLDEN / "predictions.jsonl").read_bytes()


def test_its_answers_get_the_scores_that_they_had(
    medalign: Callable[..., str], folder: Path
) -> None:
    medalign(
        *("eval", "score", folder / "half_right.jsonl", folder / "manifest.jsonl"),
        *("--task", "vqa", "--out", folder / "again.json"),
    )
    before = json.loads((GOLDEN / "scores.json").read_text())["metrics"]
    assert any(0 < metric["value"] < 100 for metric in before)
    after = {
        (metric["name"], metric["protocol"]): metric
        for metric in json.loads((folder / "again.json").read_text())["metrics"]
    }
    for metric in before:
        again = after[metric["name"], metric["protocol"]]
        for key in ("value", "interval", "n", "unit"):
            assert again[key] == metric[key], (metric["name"], key)


def test_its_scores_make_a_table(medalign: Callable[..., str]) -> None:
    text = medalign("eval", "table", GOLDEN / "scores.json", "--format", "csv")
    rows = [line.split(",") for line in text.splitlines()]
    value = rows[0].index("value")
    accuracy = [row[value] for row in rows if row[1:3] == ["strict", "overall_accuracy"]]
    scores = json.loads((GOLDEN / "scores.json").read_text())["metrics"]
    (golden,) = [m for m in scores if (m["name"], m["protocol"]) == ("overall_accuracy", "strict")]
    assert [float(text) for text in accuracy] == [pytest.approx(golden["value"], abs=0.05)]
