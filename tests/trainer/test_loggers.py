import json
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medalign.runtime.files import append_lines, read_lines
from medalign.trainer.recipe.recipe import Recipe, RecipeError
from medalign.trainer.recipe.sections import LogSection
from medalign.trainer.run import loggers
from medalign.trainer.run.best_checkpoint import Best
from medalign.trainer.run.folder import RunFolder
from medalign.trainer.run.loggers import (
    JsonLines,
    Loggers,
    TensorBoard,
    check_installed,
    open_loggers,
)

needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="needs the extra medalign[tensorboard]"
)


@pytest.fixture
def folder(tmp_path: Path, recipe: Callable[..., Recipe]) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path / "run")
    made.begin(recipe(), {}, resume=True)
    yield made
    made.release()


def measured(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "vis": None, "grad_norms": {"lora": 2.0}}


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


class Full:
    """A file on a disk that takes seven bytes more."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[:7])
        raise OSError(28, "No space left on device")


def half_written(folder: Path) -> Callable[..., Any]:
    """`Path.open` where appending to files of a folder meets a full disk."""
    open_file = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = open_file(self, mode, *args, **options)
        return Full(file) if mode == "ab" and self.parent == folder else file

    return full


@needs_tensorboard
def test_tensorboard_shows_every_number_once_after_a_kill(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, start=0)
    first.log("validation", 0, {"step": 0, "lm": 3.0, "records": "digest"})
    for step in (1, 2, 3, 4):  # and is killed
        first.log("train", step, measured(step))
    second = TensorBoard(tmp_path, start=2)
    for step in (3, 4, 5):
        second.log("train", step, measured(step))
    found = curves(tmp_path)
    assert set(found) == {"train/loss", "train/grad_norms/lora", "validation/lm"}
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5]
    assert found["train/loss"][3][1] == pytest.approx(0.25)
    assert found["validation/lm"] == [(0, 3.0)]


@needs_tensorboard
def test_a_full_disk_under_tensorboard_is_told_once_and_ends_nothing(
    folder: RunFolder, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    events = folder.path / "tensorboard"
    opened = open_loggers(recipe(**{"log.tensorboard": True}), folder, 0, (), said.append)
    with opened:
        for step in (1, 2, 3, 4):
            with monkeypatch.context() as patch:
                if step in (2, 3):
                    patch.setattr(Path, "open", half_written(events))
                opened.log("train", step, measured(step))
    (line,) = said
    assert line.startswith("TensorBoard cannot write; training continues without it: ")
    assert "No space left" in line
    assert [line["step"] for line in folder.metrics()] == [1, 2, 3, 4]
    assert [step for step, _ in curves(events)["train/loss"]] == [1, 4]


def unreachable() -> JsonLines:
    """Cannot be opened."""
    raise ConnectionError("no route")


class Broken:
    """Fails at everything."""

    def log(self, *_args: Any) -> None:
        raise ConnectionError("no route\nto host")

    saved = log

    def close(self, *, failed: bool) -> None:
        raise ConnectionError(str(failed))


def test_a_logger_that_fails_is_told_once_and_the_others_go_on(folder: RunFolder) -> None:
    said: list[str] = []
    best = Best(Path("step-1"), 1, "lm", 0.5)
    with Loggers([Broken(), JsonLines(folder)], said.append) as both:
        both.log("train", 1, measured(1))
        both.log("validation", 1, measured(1))
        both.saved(1, best)
        both.open(unreachable, "Other")
    assert said == [
        "Broken cannot write; training continues without it: no route",
        "Other cannot write; training continues without it: no route",
    ]
    assert folder.metrics() == folder.validation() == [measured(1)]


def test_a_full_disk_leaves_whole_lines_and_the_next_ones_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    append_lines(path, [measured(1)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", half_written(tmp_path))
        with pytest.raises(OSError, match="No space"):
            append_lines(path, [measured(2)])
    append_lines(path, [measured(3)])
    assert [line["step"] for line in read_lines(path)] == [1, 3]


@pytest.mark.parametrize(
    ("package", "asked"), [("tensorboard", {"tensorboard": True}), ("wandb", {"wandb": "mine"})]
)
def test_a_missing_package_is_refused_naming_the_extra(
    package: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / package).mkdir()  # W&B's own folder of an earlier run is no package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(RecipeError, match=rf"pip install 'medalign\[{package}\]'"):
        check_installed(LogSection(**asked))
    check_installed(LogSection())


class FakeRun:
    """A W&B run that remembers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ended: list[int] = []

    def define_metric(self, _name: str, step_metric: str) -> None:
        assert step_metric == "step"

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], FakeRun]]:
    """Stands for the package; gives what `init` was called with and the run it gave."""
    begun: list[tuple[dict[str, Any], FakeRun]] = []

    def init(**options: Any) -> FakeRun:
        begun.append((options, FakeRun()))
        return begun[-1][1]

    fake = SimpleNamespace(init=init, Settings=lambda **options: options)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return begun


def test_a_resumed_run_keeps_its_wandb_id_and_sends_nothing_twice(
    folder: RunFolder,
    recipe: Callable[..., Recipe],
    wandb: list[tuple[dict[str, Any], FakeRun]],
) -> None:
    mine = recipe(**{"log.wandb": "mine"})

    def go(start: int, steps: range, validated: int | None) -> None:
        opened = open_loggers(mine, folder, start, (), pytest.fail)
        folder.rewind(start)
        for step in steps:
            opened.log("train", step, measured(step))
        if validated is not None:
            opened.log("validation", validated, {"step": validated, "lm": 1.0})
        opened.__exit__(KeyboardInterrupt, None, None)

    go(0, range(1, 6), 4)
    go(2, range(3, 4), None)  # killed before it was as far as the first time
    go(2, range(3, 8), 5)
    sent = [row["step"] for _, run in wandb for row in run.rows if "train/loss" in row]
    assert sent == [1, 2, 3, 4, 5, 6, 7]
    tested = [row for _, run in wandb for row in run.rows if "validation/lm" in row]
    assert tested == [{"step": 4, "validation/lm": 1.0}, {"step": 5, "validation/lm": 1.0}]
    ids = {options["id"] for options, _ in wandb}
    assert ids == {json.loads((folder.path / "wandb.json").read_text())["id"]}
    for options, run in wandb:
        assert (options["project"], options["resume"]) == ("mine", "allow")
        assert (options["mode"], options["dir"]) == ("offline", str(folder.path))
        assert run.ended == [1]


def test_the_network_is_used_only_where_the_user_asked(
    folder: RunFolder,
    recipe: Callable[..., Recipe],
    wandb: list[tuple[dict[str, Any], FakeRun]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    online = recipe(**{"log.wandb": "mine", "log.wandb_mode": "online"})
    open_loggers(online, folder, 0, (), pytest.fail)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    open_loggers(online, folder, 0, (), pytest.fail)
    assert [options["mode"] for options, _ in wandb] == ["online", None]


def test_the_numbers_are_those_that_can_be_drawn() -> None:
    values = {"step": 3, "loss": 1, "vis": None, "records": "digest", "lr": 0.5}
    assert loggers.numbers(values) == {"loss": 1.0, "lr": 0.5}
