import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from medalign.cli import app
from medalign.runtime.arguments import ArgumentError
from medalign.trainer.distributed.engine import Engine
from medalign.trainer.loop import NothingToLearnError
from medalign.trainer.memory import Load, Parameters, Settings, Shape
from medalign.trainer.preflight import measure
from medalign.trainer.preflight import train_plan as attempt
from medalign.trainer.preflight import train_plan as planning
from medalign.trainer.preflight.advice import Case, advise, scaled
from medalign.trainer.preflight.plan_report import plan_lines
from medalign.trainer.preflight.train_plan import make_plan
from medalign.trainer.prepared import with_paths
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.students.spec import StudentError
from medalign.trainer.train import train

Dataset = Callable[..., tuple[Path, Path, Path]]

SEVEN = Case(
    parameters=Parameters(
        frozen=7_000_000_000, linear=6_500_000_000, lora=160_000_000, projector=20_000_000,
        rotation=20_000_000,
    ),
    shape=Shape(
        layers=32, width=4096, inner=14336, query_width=4096, key_width=1024, heads=32,
        vocabulary=32000, tower_width=1024,
    ),
    load=Load(
        batch=8, tokens=700, images=8, visual=576, answers=80, question=30, teacher_bytes=9_600_000,
        padded=True,
    ),
    chosen=Settings(
        number_bytes=2, rank=64, dropout=True, checkpointing=False, flash=False, losses=True,
        rotation=True, stage=2,
    ),
)  # fmt: skip


def files(folder: Path) -> dict[Path, int]:
    """Everything below a folder, with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def command(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    """Run `medalign train RECIPE --plan`: `command("--json", **recipe)`; no file may change."""
    manifest, images, cache = dataset()
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    def run(*words: str, **changes: Any) -> Any:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe(**changes).to_yaml())
        student = students()
        paths = ["--cache", cache, "--manifest", manifest, "--images", images]
        given = ["train", path, "--plan", *paths, "--student", student, *words]
        before = files(tmp_path), files(student)
        done = CliRunner().invoke(app, [str(word) for word in given])
        after = files(tmp_path), files(student)
        # DeepSpeed or a worker may use the folder for temporary files, but leaves it empty.
        for found in (before, after):
            del found[0][tmp_path / "temporary"]
        assert before == after
        return done

    return run


@pytest.mark.parametrize("workers", [0, 1])
def test_a_plan_measures_real_steps_and_leaves_nothing_behind(
    workers: int, command: Callable[..., Any]
) -> None:
    done = command("--json", **{"run.steps": None, "run.epochs": 3.0, "data.workers": workers})
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["run"] == found["run"] | {"samples": 8, "steps": 6, "per_step": 4, "world": 1}
    measured = found["measured"]
    seconds = measured["seconds"]
    assert seconds["step"] == pytest.approx(
        seconds["data_wait"] + seconds["passes"] + seconds["update"]
    )
    assert min(seconds.values()) > 0
    assert found["run"]["hours"] == pytest.approx(6 * seconds["step"] / 3600)
    assert measured["samples_per_second"] == pytest.approx(4 / seconds["step"])
    memory = measured["memory"]
    trained = sum(found["parameters"][name] for name in ("lora", "projector", "rotation"))
    assert memory["trained"] == memory["gradients"] == 4 * trained
    assert memory["optimiser"] == 8 * trained
    assert memory["frozen"] == 4 * found["parameters"]["frozen"]
    assert memory["teacher"] == found["batch"]["teacher_bytes"] > 0
    assert memory["activations"] > 0
    assert memory["total"] == measured["taken_bytes"] < measured["device_bytes"]


def test_a_plan_is_told_in_words_with_measurement_and_estimate_apart(
    command: Callable[..., Any],
) -> None:
    done = command()
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "measured on CPU" in lines
    assert any(line.startswith("estimate for a GPU of 80.0 GB in fp32") for line in lines)
    assert [line[:5].strip() for line in lines[lines.index(_stages(lines)) + 2 :][:4]] == [*"0123"]
    assert lines[-1].startswith("disk ")


def _stages(lines: list[str]) -> str:
    return next(line for line in lines if line.startswith("by formula, one of 8 GPUs of 80.0 GB"))


def test_the_measured_batch_has_the_longest_conversations(
    dataset: Dataset, students: Callable[..., Path], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    turns = [
        {"from": "human", "value": "<image>\nIs this an X-ray?"},
        {"from": "gpt", "value": "yes " * 40},
    ]
    manifest, images, cache = dataset(
        extra=[{"id": "long", "image": "1.png", "conversations": turns}]
    )
    chosen = with_paths(recipe(), student=students(), manifest=manifest, images=images)
    made = make_plan(chosen, cache, tmp_path / "run")
    assert made is not None
    run, plan = made
    encoder = run.student.encoder
    sizes = [len(encoder.training(r, 10**6).input_ids) for r in run.selection.records]
    assert max(sizes) == sizes[-1]
    assert plan.case.load.tokens == sizes[-1]
    assert plan.case.load.batch == plan.case.load.images == 2
    assert plan.case.load.padded


def test_the_demo_recipe_needs_no_student_of_its_own(
    dataset: Dataset,
) -> None:
    manifest, images, _ = dataset(images=2)
    plain = ["--set", "loss.alpha=0", "--set", "loss.beta=0"]
    given = ["train", "demo", "--plan", "--manifest", manifest, "--images", images, *plain]
    done = CliRunner().invoke(app, [str(word) for word in given])
    assert done.exit_code == 0, done.output
    assert "measured on CPU" in done.stdout


def test_a_plan_of_nothing_that_can_be_used_says_so(
    dataset: Dataset, students: Callable[..., Path], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    manifest, images, cache = dataset()
    chosen = recipe(**{"data.max_length": 20})
    chosen = with_paths(chosen, student=students(), manifest=manifest, images=images)
    with pytest.raises(NothingToLearnError, match=r"for instance .* data.max_length is 20"):
        make_plan(chosen, cache, tmp_path / "run")
    for path in images.iterdir():
        path.write_bytes(b"no image")
    chosen = with_paths(recipe(), student=students(), manifest=manifest, images=images)
    with pytest.raises(NothingToLearnError, match=r"for instance .*\.png"):
        make_plan(chosen, cache, tmp_path / "run")


def test_conversations_that_cannot_be_read_are_not_the_longest(
    dataset: Dataset, students: Callable[..., Path], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    manifest, images, cache = dataset(images=3, records=3)
    (images / "2.png").unlink()  # the longest answer's
    chosen = recipe(**{"data.batch_size": 4})
    chosen = with_paths(chosen, student=students(), manifest=manifest, images=images)
    made = make_plan(chosen, cache, tmp_path / "run")
    assert made is not None
    assert made[1].case.load.images == 4  # two images, twice


def test_a_student_too_large_for_a_cpu_is_estimated_and_the_rule_is_told(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "CPU_PARAMETERS", 100_000)
    monkeypatch.setattr(planning, "GPU_BYTES", 10_000_000)
    done = command(**{"data.batch_size": 4})
    assert done.exit_code == 0, done.output
    assert "not measured: no GPU here, and the student has 0.0 billion parameters" in done.stdout
    assert "warning: does not fit" in done.stdout
    assert "data.batch_size: 1, data.accumulation: 8" in done.stdout
    found = json.loads(command("--json").stdout)
    assert found["measured"] is None
    assert found["run"]["hours"] is None
    assert found["run"]["hours_by_formula"] > 0
    assert found["fits"] is False


def test_memory_is_compared_with_what_is_free_on_a_cpu(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "free_memory_bytes", lambda: 1_000_000)
    assert "GB free memory; on a CPU it is taken up to 50% of that" in command().stdout


@pytest.mark.parametrize("where", ["loading", "step"])
def test_a_full_gpu_is_a_plan_that_does_not_fit(
    where: str,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory")

    def load(*_: Any) -> None:
        raise StudentError("cannot load the student: CUDA out of memory") from full

    def backward(*_: Any) -> None:
        raise full

    if where == "loading":
        monkeypatch.setattr(measure, "load_engine", load)
    else:
        monkeypatch.setattr(Engine, "backward", backward)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    manifest, images, cache = dataset()
    chosen = with_paths(recipe(), student=students(), manifest=manifest, images=images)
    made = make_plan(chosen, cache, tmp_path / "run")
    assert made is not None
    assert not made[1].fits
    lines = list(plan_lines(made[1]))
    assert any(line.startswith("not measured: out of memory: ") for line in lines)
    assert any(line.startswith("warning: does not fit") for line in lines)


def test_a_student_that_cannot_be_loaded_is_an_error(
    dataset: Dataset, students: Callable[..., Path], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    student = tmp_path / "student"
    shutil.copytree(students(), student)
    (student / "model.safetensors").unlink()
    manifest, images, cache = dataset()
    chosen = with_paths(recipe(), student=student, manifest=manifest, images=images)
    with pytest.raises(StudentError, match="holds no weights; copy or convert the folder again"):
        make_plan(chosen, cache, tmp_path / "run")


def test_json_without_a_plan_is_refused() -> None:
    done = CliRunner().invoke(app, ["train", "demo", "--json"])
    assert isinstance(done.exception, ArgumentError)
    assert "--json goes with --plan" in str(done.exception)


def test_disk_is_what_a_real_checkpoint_takes(
    dataset: Dataset, students: Callable[..., Path], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    manifest, images, cache = dataset()
    changes = {"run.steps": 2, "run.save_every": 1, "run.keep": 2}
    chosen = with_paths(recipe(**changes), student=students(), manifest=manifest, images=images)
    made = make_plan(chosen, cache, tmp_path / "run")
    assert made is not None
    disk = made[1].disk
    train(chosen, cache, tmp_path / "run", say=lambda _: None, report=lambda *_: None)
    for step in (1, 2):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step}"
        tensors = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        assert tensors == pytest.approx(disk.checkpoint, rel=0.1)
    whole = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert whole < disk.most


def test_disk_counts_the_best_checkpoint_and_its_adapter_where_they_are_kept(
    dataset: Dataset, students: Callable[..., Path], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    manifest, images, cache = dataset()
    disks = []
    for by in (None, "lm"):
        held_out = {"validation.manifest": str(manifest), "validation.keep_best": by}
        chosen = recipe(**{"run.keep": 2, **held_out})
        chosen = with_paths(chosen, student=students(), manifest=manifest, images=images)
        made = make_plan(chosen, cache, tmp_path / "run")
        assert made is not None
        disks.append(made[1].disk)
    plain, best = disks
    adapter = plain.most - 3 * plain.checkpoint
    assert best.checkpoint == plain.checkpoint
    assert best.most == plain.most + plain.checkpoint + adapter


def test_advice_takes_the_difference_by_formula_from_what_was_measured(
    recipe: Callable[..., Recipe],
) -> None:
    chosen = recipe(**{"data.batch_size": 8, "data.accumulation": 1})
    peak = SEVEN.memory.total + 5_000_000_000
    found = {each.change: each for each in advise(chosen, SEVEN, peak, 80_000_000_000)}
    checkpointed = replace(SEVEN, chosen=replace(SEVEN.chosen, checkpointing=True))
    key = "student.gradient_checkpointing: true"
    assert found[key].peak == checkpointed.memory.total + 5_000_000_000
    assert found[key].fits
    halved = replace(SEVEN, load=scaled(SEVEN.load, 4))
    key = "data.batch_size: 4, data.accumulation: 2"
    assert found[key].peak == halved.memory.total + 5_000_000_000
    assert set(found) >= {key}
    assert all(each.peak < peak for each in found.values())


def test_advice_names_the_mildest_change_that_suffices_or_else_the_strongest(
    recipe: Callable[..., Recipe],
) -> None:
    chosen = recipe(**{"data.batch_size": 8, "data.accumulation": 1})
    peak = SEVEN.memory.total

    def changes(device: int) -> dict[str, bool]:
        found = advise(chosen, SEVEN, peak, device)
        assert [each.peak for each in found] == sorted((e.peak for e in found), reverse=True)
        return {each.change: each.fits for each in found if "batch_size" in each.change}

    assert changes(peak - 1) == {"data.batch_size: 4, data.accumulation: 2": True}
    key = "data.batch_size: 1, data.accumulation: 8"
    both = f"student.gradient_checkpointing: true, {key}"
    assert changes(1) == {key: False, both: False}


def test_a_load_of_one_conversation_needs_no_padding() -> None:
    one = scaled(SEVEN.load, 1)
    assert (one.batch, one.images, one.answers, one.teacher_bytes) == (1, 1, 10, 1_200_000)
    assert one.tokens == 700
    assert not one.padded
