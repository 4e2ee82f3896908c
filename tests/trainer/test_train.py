import errno
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from medalign.trainer.distributed.engine import Engine
from medalign.trainer.loop import (
    NothingToLearnError,
    Step,
    TrainingDivergedError,
    dropout_seed,
)
from medalign.trainer.machine import DeviceMemoryError
from medalign.trainer.prepared import describe, prepare, with_paths
from medalign.trainer.recipe.recipe import Recipe, RecipeError
from medalign.trainer.train import Result, adapted, train

Dataset = Callable[..., tuple[Path, Path, Path]]


class StopHereError(Exception):
    """Stands for a kill between two steps."""


def run(
    recipe: Recipe,
    data: tuple[Path, Path, Path | None],
    student: Path,
    out: Path,
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda _: None,
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
        result = train(chosen, cache, out, say=say, report=report, **options)
    except StopHereError:
        return None, steps
    return result, steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
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
    assert [s.epoch for s in whole] == [0.5, 1.0, 1.5, 2.0, 2.5]  # 4 of 8 records a step
    assert [s.epoch for s in rest] == [1.5, 2.0, 2.5]
    a, b = weights(tmp_path / "whole/adapter"), weights(tmp_path / "cut/adapter")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    lines = [json.loads(x) for x in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_a_run_grouped_by_length_resumes_in_the_same_order_with_and_without_workers(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    data, student = dataset(), students()
    grouped = {"data.group_by_length": True, "run.steps": 4}
    _, whole = run(recipe(**grouped), data, student, tmp_path / "whole")
    _, plain = run(recipe(**{"run.steps": 1}), data, student, tmp_path / "plain")
    assert plain[0].lm != whole[0].lm
    run(recipe(**grouped), data, student, tmp_path / "cut", stop_after=3)
    ahead = {"data.workers": 1, "data.prefetch": 1, "data.start_method": "fork"}
    _, rest = run(recipe(**grouped, **ahead), data, student, tmp_path / "cut")
    assert [s.lm for s in rest] == [s.lm for s in whole[2:]]
    a, b = weights(tmp_path / "whole/adapter"), weights(tmp_path / "cut/adapter")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_step_is_the_same_for_every_split_through_the_engine(
    grouped: bool,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    data, student = dataset(), students()
    found = []
    for size, accumulation in ((4, 1), (1, 4)) if grouped else ((4, 1), (2, 2), (1, 4)):
        split = {
            "data.batch_size": size,
            "data.accumulation": accumulation,
            "data.group_by_length": grouped,
        }
        chosen = recipe(**split, **{"lora.dropout": 0.0, "run.steps": 3})
        _, steps = run(chosen, data, student, tmp_path / f"split-{size}")
        found.append([(s.lm, s.vis, s.att, s.grad_norm) for s in steps])
    for other in found[1:]:
        assert torch.allclose(torch.tensor(other), torch.tensor(found[0]), rtol=1e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_recomputed_activations_leave_every_number_as_it_was(
    stage: int,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With dropout, whose masks must be the same when a layer is computed again."""
    forwards = []

    def watched(base: Any, chosen: Recipe) -> Any:
        layer = base.get_submodule("model.language_model.layers.1.mlp")
        forwards.append(0)

        def count(*_: object) -> None:
            forwards[-1] += 1

        layer.register_forward_pre_hook(count)  # a second pass may end within the layer
        return adapted(base, chosen)

    monkeypatch.setattr("medalign.trainer.train.adapted", watched)
    data, student, found = dataset(), students(), []
    for recomputing in (False, True):
        setting = {"student.gradient_checkpointing": recomputing}
        chosen = recipe(**setting, **{"deepspeed.stage": stage, "run.steps": 3})
        _, steps = run(chosen, data, student, tmp_path / str(recomputing))
        found.append([(s.loss, s.lm, s.vis, s.att, s.grad_norm) for s in steps])
    assert forwards == [3 * 2, 2 * 3 * 2]  # once and twice in each of two micro-steps
    assert torch.allclose(torch.tensor(found[1]), torch.tensor(found[0]), rtol=1e-5)
    a, b = weights(tmp_path / "False/adapter"), weights(tmp_path / "True/adapter")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[key], b[key], atol=2e-4) for key in a)  # a 50th of an update


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_run_that_diverges_stops_and_names_the_records(
    stage: int,
    where: str,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backward, forward, calls = Engine.backward, Engine.__call__, 0

    def poisoned(self: Engine, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        loss, terms = forward(self, *args)
        return loss, terms * (float("nan") if calls > 4 else 1.0)

    def infinite(self: Engine, loss: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        backward(self, loss * (float("inf") if calls > 4 else 1.0))

    if where == "loss":
        monkeypatch.setattr(Engine, "__call__", poisoned)
    else:
        monkeypatch.setattr(Engine, "backward", infinite)
    chosen = recipe(**{"deepspeed.stage": stage, "run.save_every": 1})
    with pytest.raises(TrainingDivergedError, match=r"step 3: not finite.*'r\d'"):
        run(chosen, dataset(), students(), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    saved = load_file(tmp_path / "run" / "checkpoints" / "last" / "state.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_a_folder_without_the_images_is_refused_not_trained_on(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    manifest, _, store = dataset()
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"none of 8 images .*\.png\); --images must be"):
        run(recipe(), (manifest, tmp_path / "empty", store), students(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_lost_while_a_run_is_under_way_end_it(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, images, store = dataset()
    monkeypatch.setattr("medalign.trainer.prepared._check_folder", lambda *_: None)
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(NothingToLearnError, match=r"step 1 has nothing to learn .*\.png"):
        run(recipe(), (manifest, images, store), students(), tmp_path / "run")


def test_spawned_workers_import_no_student(tmp_path: Path) -> None:
    code = "import sys; import medalign.trainer.data.dataset; print('peft' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "False"


def test_an_image_lost_since_is_skipped_and_counted(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    manifest, images, store = dataset()
    (images / "3.png").unlink()
    result, steps = run(recipe(), (manifest, images, store), students(), tmp_path / "run")
    assert result is not None
    assert {record for record, _ in result.skipped} <= {"r3"}
    assert sum(step.skipped for step in steps) == len(result.skipped) > 0


def test_a_full_disk_under_the_lines_of_a_run_is_told_once_and_ends_nothing(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, images, store = dataset()
    for name in ("2.png", "3.png", "4.png"):
        (images / name).unlink()
    open_file = Path.open
    said: list[str] = []

    def full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if self.suffix == ".jsonl" and "a" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_file(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    result, steps = run(
        recipe(), (manifest, images, store), students(), tmp_path / "run", say=said.append
    )
    assert result is not None
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert sum(step.skipped > 0 for step in steps) > 1
    told = [line for line in said if "training continues without it: [Errno 28] No space" in line]
    assert sorted(line.split()[0] for line in told) == ["JsonLines", "skipped.jsonl"]


def test_a_full_disk_while_saving_is_told_and_keeps_the_checkpoint_before(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, student = dataset(), students()
    calls = 0

    def full(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # the second checkpoint
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(*args)

    monkeypatch.setattr("medalign.trainer.run.checkpoint.save_file", full)
    with pytest.raises(OSError, match="no space left") as error:
        run(recipe(), data, student, tmp_path / "run")
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    _, rest = run(recipe(), data, student, tmp_path / "run")
    assert [step.step for step in rest] == [3, 4]


def test_a_kill_before_the_first_checkpoint_repeats_no_line(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    data, student = dataset(), students()
    run(recipe(), data, student, tmp_path / "run", stop_after=1)
    run(recipe(), data, student, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize("what", ["student", "records", "per_step"])
def test_another_student_or_other_records_are_not_resumed(
    what: str,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    data, student, chosen = dataset(), students(), recipe()
    run(chosen, data, student, tmp_path / "run", stop_after=3)
    if what == "student":
        student = students("qwen2")
    elif what == "records":
        data[0].write_text(data[0].read_text().replace("the lungs", "the liver"))
    else:
        chosen = recipe(**{"data.accumulation": 3})
    with pytest.raises(RecipeError, match=f"trained with another {what}"):
        run(chosen, data, student, tmp_path / "run")


def test_a_run_of_a_gpu_goes_on_without_one_only_in_its_own_precision(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, student, out = dataset(), students(), tmp_path / "run"

    def chosen(dtype: str) -> Recipe:
        return recipe(**{"student.dtype": dtype, "deepspeed.stage": 1})

    with monkeypatch.context() as patch:  # what auto comes to on a GPU
        patch.setattr("medalign.trainer.derived._dtype", lambda *_, **__: torch.bfloat16)
        run(chosen("auto"), data, student, out, stop_after=3)
    with pytest.raises(RecipeError, match=r"another precision \('bf16', now 'fp32'\)"):
        run(chosen("auto"), data, student, out)
    _, rest = run(chosen("bf16"), data, student, out)
    assert [step.step for step in rest] == [3, 4]


def test_bf16_without_zero_is_refused_before_anything_is_loaded(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    with pytest.raises(RecipeError, match=r"bf16 .* needs deepspeed.stage 1, 2 or 3"):
        run(recipe(**{"student.dtype": "bf16"}), dataset(), students(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_in_bfloat16_trains_and_resumes(
    stage: int,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    data, student = dataset(), students()
    chosen = recipe(**{"student.dtype": "bf16", "deepspeed.stage": stage})
    _, whole = run(chosen, data, student, tmp_path / "whole")
    run(chosen, data, student, tmp_path / "cut", stop_after=3)
    _, rest = run(chosen, data, student, tmp_path / "cut")
    assert [(s.lm, s.vis, s.att) for s in rest] == [(s.lm, s.vis, s.att) for s in whole[2:]]


def test_a_cache_without_a_certificate_is_told(
    dataset: Dataset, students: Callable[..., Path], recipe: Callable[..., Recipe]
) -> None:
    manifest, images, cache = dataset()
    said: list[str] = []
    chosen = with_paths(recipe(), student=students(), manifest=manifest, images=images)
    describe(prepare(chosen, cache, world=1), said.append)
    assert "         no certificate: no rows were recomputed when it was sealed" in said


def test_a_full_gpu_says_what_to_lower(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_self: Engine, _loss: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "backward", full)
    chosen = recipe(**{"student.gradient_checkpointing": True})
    with pytest.raises(DeviceMemoryError) as error:
        run(chosen, dataset(), students(), tmp_path / "run")
    told = str(error.value)
    assert "step 1: the GPU's memory is full with data.batch_size 2; lower data.batch_size" in told
    assert "nf4" in told
    assert "gradient_checkpointing" not in told  # it is on already


def test_a_gpu_that_is_full_before_or_after_a_step_says_so_too(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_args: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    data, student = dataset(), students()
    with monkeypatch.context() as patch:
        patch.setattr(LlavaForConditionalGeneration, "from_pretrained", full)
        with pytest.raises(DeviceMemoryError, match=r"loading the student: .* nf4"):
            run(recipe(), data, student, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "state", full)
        with pytest.raises(DeviceMemoryError, match="or saving: the GPU's memory is full"):
            run(recipe(), data, student, tmp_path / "run")


def test_dropout_follows_from_seed_step_and_rank_alone(
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    all_of = itertools.product((0, 1), (1, 2), (0, 1))
    assert len({dropout_seed(seed, step, rank) for seed, step, rank in all_of}) == 8
    data, student = dataset(), students()
    _, once = run(recipe(), data, student, tmp_path / "once")
    torch.manual_seed(12345)
    torch.rand(7)
    _, again = run(recipe(), data, student, tmp_path / "again")
    assert [s.loss for s in once] == [s.loss for s in again]
