import json
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medalign.cli import main
from medalign.pipeline.manifest import read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.trainer.data.dataset import Conversations
from medalign.trainer.data.order import HeldOutOrder, choose
from medalign.trainer.loop import Step
from medalign.trainer.objective import Objective
from medalign.trainer.prepared import describe, prepare, with_paths
from medalign.trainer.recipe.recipe import Recipe, RecipeError
from medalign.trainer.run.checkpoint import save_checkpoint
from medalign.trainer.student import add_adapter, load_base
from medalign.trainer.students.spec import read_student
from medalign.trainer.train import Result, train
from medalign.trainer.validation import (
    HeldOut,
    NothingHeldOutError,
    Validation,
)

Dataset = Callable[..., tuple[Path, Path, Path]]
MEASURED = ("step", "loss", "lm", "vis", "att", "samples")


class StopHereError(Exception):
    """Stands for a kill between two steps."""


def run(
    recipe: Recipe,
    data: tuple[Path, Path, Path],
    student: Path,
    out: Path,
    stop_after: int | None = None,
) -> Result | None:
    def report(step: Step, _of: int) -> None:
        if step.step == stop_after:
            raise StopHereError

    manifest, images, cache = data
    chosen = with_paths(recipe, student=student, manifest=manifest, images=images)
    try:
        return train(chosen, cache, out, say=lambda _: None, report=report)
    except StopHereError:
        return None


def lines(out: Path, name: str = "validation.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def measured(out: Path) -> list[tuple[Any, ...]]:
    return [tuple(line[key] for key in MEASURED) for line in lines(out)]


@pytest.fixture
def held_out(
    dataset: Dataset, recipe: Callable[..., Recipe]
) -> tuple[tuple[Path, Path, Path], Callable[..., Recipe]]:
    """The first 5 of 8 records are held out, too; `validating(...)` makes a recipe that says so."""
    data = dataset()
    manifest = data[0].with_name("held-out.jsonl")
    manifest.write_text("".join(data[0].read_text().splitlines(keepends=True)[:5]))

    def validating(**changes: Any) -> Recipe:
        mine = {"validation.manifest": str(manifest), "validation.every": 2, "run.steps": 5}
        return recipe(**(mine | changes))

    return data, validating


Given = tuple[tuple[Path, Path, Path], Callable[..., Recipe]]


def test_a_run_with_validation_learns_the_same_and_measures_the_same_after_a_kill(
    held_out: Given, students: Callable[..., Path], tmp_path: Path
) -> None:
    data, validating = held_out
    plain = validating(**{"validation.manifest": None})
    run(plain, data, students(), tmp_path / "plain")
    run(validating(), data, students(), tmp_path / "whole")
    run(validating(), data, students(), tmp_path / "cut", stop_after=5)
    assert [line["step"] for line in lines(tmp_path / "cut")] == [0, 2, 4]
    run(validating(), data, students(), tmp_path / "cut")
    assert [line["step"] for line in lines(tmp_path / "whole")] == [0, 2, 4, 5]
    assert measured(tmp_path / "cut") == measured(tmp_path / "whole")
    assert len({line["lm"] for line in lines(tmp_path / "whole")}) == 4
    terms = ("step", "loss", "lm", "vis", "att", "grad_norm", "lr")
    learnt = [
        [[line[key] for key in terms] for line in lines(tmp_path / name, "metrics.jsonl")]
        for name in ("plain", "whole", "cut")
    ]
    assert learnt[0] == learnt[1] == learnt[2]


class Together:
    """Ranks of one process: a thread each."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._barrier = Barrier(world, timeout=60)
        self._given: dict[int, list[float]] = {}

    def of(self, rank: int) -> Any:
        return _Rank(self, rank)

    def sum(self, rank: int, values: list[float]) -> list[float]:
        self._given[rank] = values
        self._barrier.wait()
        total = [sum(column) for column in zip(*self._given.values(), strict=True)]
        self._barrier.wait()
        return total


class _Rank:
    device = torch.device("cpu")

    def __init__(self, together: Together, rank: int) -> None:
        self.rank, self.world, self._together = rank, together.world, together

    def sum(self, values: list[float]) -> list[float]:
        return self._together.sum(self.rank, values)


class Counting:
    """An engine that is nothing but its objective, and counts forward passes."""

    def __init__(self, objective: Objective, ranks: Any) -> None:
        self.engine, self.ranks, self.passes = objective, ranks, 0

    def __call__(self, *args: Any) -> Any:
        self.passes += 1
        return self.engine(*args)


def measure_together(held_out: HeldOut, objectives: Sequence[Objective]) -> tuple[Any, list[int]]:
    """What every rank says was measured, and the forward passes of each."""
    together = Together(len(objectives))
    engines: list[Any] = [Counting(o, together.of(rank)) for rank, o in enumerate(objectives)]
    with ThreadPoolExecutor(len(engines)) as pool:
        jobs = [
            pool.submit(held_out.measure, engine, torch.float32, 2, lambda: False)
            for engine in engines
        ]
        results = [job.result() for job in jobs]
    said = {replace(result, seconds=0.0) for result in results if result is not None}
    assert len(said) == 1
    return said.pop(), [engine.passes for engine in engines]


def test_neither_ranks_nor_batch_size_change_what_is_measured(
    held_out: Given, students: Callable[..., Path]
) -> None:
    (manifest, images, store), validating = held_out
    spec = read_student(students())
    cache = TeacherCache.open(store)
    samples = Conversations(read_manifest(manifest)[:7], images, spec, 512, cache)
    recipe = validating(**{"lora.dropout": 0.5})

    def objective() -> Objective:
        torch.manual_seed(0)
        base = load_base(spec.path, torch.float32)
        model = add_adapter(base, 2, recipe.lora, rotation=True, projector=True)
        return Objective(model.train(), recipe.loss)

    objectives = [objective() for _ in range(3)]
    frozen = objectives[0].student.get_base_model().model.vision_tower.eval()
    found, passes = [], []
    for world, size in ((1, 7), (1, 2), (3, 2)):
        data = recipe.data.model_copy(update={"batch_size": size})
        measure = HeldOut(samples, "digest", recipe.model_copy(update={"data": data}), 5, 0)
        values, counted = measure_together(measure, objectives[:world])
        found.append(values)
        passes.append(counted)
    assert passes == [[1], [4], [2, 2, 2]]  # 7 samples in 3 * 2 * 2 places
    assert objectives[0].student.training
    assert not frozen.training
    for other in found[1:]:
        assert other.samples == found[0].samples == 7
        for name in ("loss", "lm", "vis", "att"):
            assert getattr(other, name) == pytest.approx(getattr(found[0], name), rel=1e-5)


def test_every_sample_is_in_one_place_and_every_rank_does_the_same_number_of_batches() -> None:
    for samples, size, world in ((1, 4, 3), (12, 2, 3), (13, 2, 3), (5, 1, 1)):
        orders = [HeldOutOrder(samples, size, rank, world) for rank in range(world)]
        places = [list(order) for order in orders]
        assert len({len(batches) for batches in places}) == 1
        numbers = sorted(n for batches in places for batch in batches for n in batch)
        assert numbers[:samples] == list(range(samples))
        assert len(numbers) < samples + size * world


def test_the_choice_of_samples_is_the_same_every_time_and_not_the_first_ones() -> None:
    assert choose(5, 0) == choose(5, 5) == choose(5, 9) == [0, 1, 2, 3, 4]
    assert choose(1000, 10) == choose(1000, 10)
    assert len(set(choose(1000, 10))) == 10
    assert max(choose(1000, 10)) > 100


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float | None]], None]:
    """Replace what evaluations find by given losses."""

    def script(losses: dict[int, float | None]) -> None:
        def measure(self: HeldOut, _engine: Any, _dtype: Any, step: int, _asked: Any) -> Validation:
            loss = losses[step]
            return Validation(step, loss, loss, None, None, 5, 0, 0.1, self.records)

        monkeypatch.setattr(HeldOut, "measure", measure)

    return script


def same_weights(a: Path, b: Path) -> bool:
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (a, b))
    return all(torch.equal(one[key], two[key]) for key in one)


def test_the_best_checkpoint_outlives_newer_ones_and_its_adapter_is_at_hand(
    held_out: Given, students: Callable[..., Path], scripted: Any, tmp_path: Path
) -> None:
    data, validating = held_out
    scripted({0: 0.1, 1: 3.0, 2: None, 3: 1.0, 4: 1.0, 5: 2.0, 6: 1.5})
    keep = {"validation.every": 1, "validation.keep_best": "loss", "run.keep": 1, "run.steps": 6}
    result = run(validating(**keep, **{"run.save_every": 4}), data, students(), tmp_path / "run")
    assert result is not None
    assert result.best is not None
    assert (result.best.step, result.best.value) == (3, 1.0)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in checkpoints.glob("step-*")) == ["step-3", "step-6"]
    assert (checkpoints / "best").resolve().name == "step-3"
    assert (checkpoints / "last").resolve().name == "step-6"
    assert same_weights(tmp_path / "run/adapter-best", checkpoints / "step-3/adapter")
    assert same_weights(tmp_path / "run/adapter", checkpoints / "step-6/adapter")
    assert not same_weights(tmp_path / "run/adapter", tmp_path / "run/adapter-best")


def test_a_kill_between_evaluation_and_save_leaves_the_best_before(
    held_out: Given,
    students: Callable[..., Path],
    scripted: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, validating = held_out
    keep = {"validation.every": 1, "validation.keep_best": "loss", "run.steps": 4}
    recipe = validating(**keep, **{"run.save_every": 100, "run.keep": 1})
    scripted({0: 9.0, 1: 2.0, 2: 3.0, 3: 1.0})

    steps = []

    def second_is_killed(*args: Any) -> Path:
        steps.append(args[3])
        if len(steps) == 2:
            raise StopHereError
        saved: Path = save_checkpoint(*args)
        return saved

    with monkeypatch.context() as patch:
        patch.setattr("medalign.trainer.loop.save_checkpoint", second_is_killed)
        run(recipe, data, students(), tmp_path / "run")
    assert steps == [1, 3]
    assert (tmp_path / "run/checkpoints/best").resolve().name == "step-1"
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 1, 2, 3]
    scripted({2: 3.0, 3: 2.5, 4: 2.0})  # not lower than what step 1 had
    result = run(recipe, data, students(), tmp_path / "run")
    assert result is not None
    assert result.best is not None
    assert result.best.step == 1
    found = [(line["step"], line["loss"]) for line in lines(tmp_path / "run")]
    assert found == [(0, 9.0), (1, 2.0), (2, 3.0), (3, 2.5), (4, 2.0)]


def test_a_run_asked_to_stop_while_it_measures_saves_and_measures_when_it_goes_on(
    held_out: Given,
    students: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, validating = held_out
    recipe = validating(**{"validation.keep_best": "lm", "run.save_every": 100})
    run(recipe, data, students(), tmp_path / "whole")
    sums = HeldOut._sums

    def interrupted(self: HeldOut, engine: Any, dtype: Any, asked: Any) -> Any:
        if engine.engine.global_steps == 4:
            signal.raise_signal(signal.SIGTERM)
        return sums(self, engine, dtype, asked)

    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "_sums", interrupted)
        stopped = run(recipe, data, students(), tmp_path / "cut")
    assert stopped is not None
    assert stopped.steps == 4
    assert [line["step"] for line in lines(tmp_path / "cut")] == [0, 2]
    run(recipe, data, students(), tmp_path / "cut")
    assert measured(tmp_path / "cut") == measured(tmp_path / "whole")
    best = [(tmp_path / name / "checkpoints/best").resolve() for name in ("whole", "cut")]
    assert best[0].name == best[1].name
    assert same_weights(best[0] / "adapter", best[1] / "adapter")


@pytest.mark.parametrize("late", [False, True])
def test_a_run_asked_to_stop_in_its_first_evaluation_trains_no_step(
    held_out: Given,
    students: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
) -> None:
    """`late` is after the last batch: what was measured is kept."""
    data, validating = held_out
    sums = HeldOut._sums

    def interrupted(self: HeldOut, *args: Any) -> Any:
        found = sums(self, *args) if late else None
        signal.raise_signal(signal.SIGTERM)
        return found if late else sums(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "_sums", interrupted)
        stopped = run(validating(), data, students(), tmp_path / "run")
    assert stopped is not None
    assert (stopped.steps, stopped.last) == (0, None)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert (tmp_path / "run" / "validation.jsonl").exists() is late
    again = run(validating(), data, students(), tmp_path / "run")
    assert again is not None
    assert again.steps == 5
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 2, 4, 5]


def test_the_command_says_which_adapter_is_which(
    held_out: Given,
    students: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (manifest, images, cache), validating = held_out
    recipe = tmp_path / "r.yaml"
    recipe.write_text(validating(**{"validation.keep_best": "lm", "run.steps": 2}).to_yaml())
    words = {
        "--manifest": manifest, "--images": images, "--cache": cache,
        "--student": students(), "--out": tmp_path / "run",
    }  # fmt: skip
    options = [str(word) for pair in words.items() for word in pair]
    monkeypatch.setattr("sys.argv", ["medalign", "train", str(recipe), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out, err = capsys.readouterr()
    last = lines(tmp_path / "run")[-1]
    assert f"adapter  {tmp_path}/run/adapter, of the last step, 2\n" in out
    best = f"of step 2, held-out lm {last['lm']:.4f}, the lowest\n"
    assert f"best     {tmp_path}/run/adapter-best, {best}" in out
    assert "held out step 0  loss" in err


def test_a_finished_run_is_measured_at_its_end_when_validation_is_asked_for_later(
    held_out: Given, students: Callable[..., Path], tmp_path: Path
) -> None:
    data, validating = held_out
    run(validating(**{"validation.manifest": None}), data, students(), tmp_path / "run")
    for _ in range(2):  # the second time there is nothing to do
        result = run(
            validating(**{"validation.keep_best": "att"}), data, students(), tmp_path / "run"
        )
        assert result is not None
        assert result.best is not None
        assert [line["step"] for line in lines(tmp_path / "run")] == [5]
    assert (tmp_path / "run" / "adapter-best").is_dir()


def test_values_of_other_held_out_records_are_not_compared(
    held_out: Given, students: Callable[..., Path], tmp_path: Path
) -> None:
    data, validating = held_out
    keep = {"validation.keep_best": "vis"}
    run(validating(**keep), data, students(), tmp_path / "run", stop_after=3)
    assert (tmp_path / "run/checkpoints/best").resolve().name == "step-2"
    result = run(
        validating(**keep, **{"validation.samples": 1}), data, students(), tmp_path / "run"
    )
    assert result is not None
    assert result.best is not None
    assert result.best.step >= 2
    found = [(line["step"], line["samples"]) for line in lines(tmp_path / "run")]
    assert found == [(0, 5), (2, 5), (2, 1), (4, 1), (5, 1)]


def test_an_image_that_is_lost_is_counted_and_one_that_changed_stops_the_run(
    held_out: Given, students: Callable[..., Path], tmp_path: Path
) -> None:
    data, validating = held_out
    _, images, _ = data
    recipe = validating(**{"run.steps": 1, "validation.images": str(tmp_path / "other")})
    (tmp_path / "other").mkdir()
    with pytest.raises(NothingHeldOutError, match=r"nothing to validate on, .*'r0'"):
        run(recipe, data, students(), tmp_path / "a")
    for name in ("1.png", "2.png", "3.png", "4.png"):
        (tmp_path / "other" / name).write_bytes((images / name).read_bytes())
    run(recipe, data, students(), tmp_path / "b")
    assert [(line["samples"], line["skipped"]) for line in lines(tmp_path / "b")] == [(4, 1)] * 2
    (tmp_path / "other" / "0.png").write_bytes((images / "1.png").read_bytes())
    with pytest.raises(TeacherCacheError, match=r"held out: record 'r0'"):
        run(recipe, data, students(), tmp_path / "c")


def test_a_value_that_is_not_finite_is_written_as_none_and_ends_nothing(
    held_out: Given,
    students: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, validating = held_out
    sums = HeldOut._sums

    def poisoned(self: HeldOut, *args: Any) -> Any:
        found = sums(self, *args)
        return None if found is None else [float("nan"), *found[1:]]

    monkeypatch.setattr(HeldOut, "_sums", poisoned)
    recipe = validating(**{"validation.keep_best": "lm", "run.steps": 2})
    result = run(recipe, data, students(), tmp_path / "run")
    assert result is not None
    assert (result.steps, result.best) == (2, None)
    assert [(line["loss"], line["lm"]) for line in lines(tmp_path / "run")] == [(None, None)] * 2


def test_what_is_held_out_is_said_and_so_is_what_cannot_be_measured(
    held_out: Given, students: Callable[..., Path], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    (manifest, images, cache), validating = held_out
    unknown = json.loads(manifest.read_text().splitlines()[0]) | {"image": "new.png"}
    path = tmp_path / "more.jsonl"
    path.write_text(manifest.read_text() + json.dumps(unknown | {"id": "new"}) + "\n")

    def prepared(store: Path | None, **changes: Any) -> Any:
        chosen = with_paths(
            validating(**{"validation.manifest": str(path), **changes}),
            student=students(), manifest=manifest, images=images,
        )  # fmt: skip
        return prepare(chosen, store, world=1)

    said: list[str] = []
    describe(prepared(cache), said.append)
    assert "held out 8 to validate on every 2 steps; 0 without a teacher; 1 dropped" in said
    assert "         8 of them show an image that is also trained on" in said
    with pytest.raises(RecipeError, match=r"validation.manifest: record 'new': image 'new.png'"):
        prepared(cache, **{"data.on_missing": "fail"})
    plain = {"loss.alpha": 0.0, "loss.beta": 0.0, "validation.keep_best": "vis"}
    with pytest.raises(RecipeError, match=r"keep_best is vis, which is not measured without"):
        prepared(None, **plain)
    with pytest.raises(ValueError, match=r"keep_best needs validation\.manifest"):
        recipe(**{"validation.keep_best": "loss"})
