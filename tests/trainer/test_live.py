import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from medalign.trainer.loop import Step
from medalign.trainer.run.best_checkpoint import Best
from medalign.trainer.run.live import LiveView


def step(number: int, **changes: float) -> Step:
    return Step(
        step=number,
        epoch=number / 10,
        loss=1.25,
        lm=1.0,
        vis=0.25,
        att=None,
        grad_norm=3.0,
        lr=2e-4,
        samples_per_second=8.0,
        data_wait=0.02,
        skipped=int(changes.get("skipped", 0)),
        cut=0,
        peak_bytes=7_900_000_000,
        tokens_per_second=4567.0,
        resident_bytes=2_100_000_000,
        grad_norms={"lora": 2.5, "rotation": 0.125},
    )


VALIDATION = {
    "step": 20, "loss": 1.5, "lm": 1.25, "vis": 0.25, "att": None, "samples": 50, "skipped": 2,
    "seconds": 3.0, "records": "digest",
}  # fmt: skip


@pytest.fixture
def clock() -> Callable[[], float]:
    """Two seconds from look to look."""
    seconds = iter(range(0, 10_000, 2))
    return lambda: float(next(seconds))


def text_of(view: LiveView, console: Console, number: int, steps: int) -> str:
    with console.capture() as capture:
        console.print(view.panel(step(number), steps))
    return capture.get()


def test_the_panel_shows_everything_about_a_run(clock: Callable[[], float]) -> None:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    with Live(console=console, auto_refresh=False) as live:
        view = LiveView(console, live, clock)
        view.report(step(21), 40)
        assert "no checkpoint yet" in text_of(view, console, 21, 40)
        view.report(step(22), 40)
        view.log("validation", 20, VALIDATION)
        view.log("train", 22, step(22).values())
        view.saved(20, Best(Path("step-10"), 10, "lm", 1.125))
        text = text_of(view, console, 22, 40)
    assert isinstance(console.file, io.StringIO)
    # What came after the last step is drawn, too.
    assert "saved     step 20" in "".join(console.file.getvalue().splitlines()[-3:])
    for words in (
        "step 22/40",
        "epoch 2.20",
        "0:00:36 left",  # 18 steps of 2 s
        "loss 1.2500  lm 1.0000  vis 0.2500",
        "step 20  loss 1.5000  lm 1.2500  vis 0.2500  50 samples  2 skipped",
        "step 10, held-out lm 1.1250",
        "norm 3  lora 2.5  rotation 0.125",
        "0.0002",
        "8.0 samples/s, 4567 tokens/s, 2% waiting for data",
        "7.9 GB at most  2.1 GB of the process now",
        "saved     step 20",
    ):
        assert words in text, text
    assert "att" not in text


def test_elsewhere_it_is_a_line_now_and_then(clock: Callable[[], float]) -> None:
    console = Console(file=io.StringIO(), width=200)
    view = LiveView(console, clock=clock)
    for number in range(1, 13):
        view.report(step(number), 12)
    view.log("validation", 20, VALIDATION)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    starts = ("step 1 of 12 ", "step 7 of 12 ", "step 12 of 12", "held out step 20  loss 1.5000")
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)
    assert lines[1].endswith("2% waiting for data, 0:00:10 left")


def test_a_second_run_in_the_same_view_starts_afresh(clock: Callable[[], float]) -> None:
    console = Console(file=io.StringIO(), width=110)
    view = LiveView(console, clock=clock)
    view.report(step(9), 9)
    view.saved(9, None)
    view.report(step(1), 9)
    assert view.time_left(1, 9) is None
    assert "no checkpoint yet" in text_of(view, console, 1, 9)
