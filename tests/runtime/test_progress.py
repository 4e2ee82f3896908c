import io

import pytest
from rich.console import Console

from medalign.runtime.progress import ConsoleProgress, NoProgress, Progress


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=100), file


def test_a_terminal_gets_a_bar_with_rate_and_count() -> None:
    screen, file = console(terminal=True)
    progress = ConsoleProgress(screen)
    with progress.stage("encoding", total=10, done=2):
        progress.advance(3)
    assert "encoding" in file.getvalue()
    assert "5/10" in file.getvalue()


def test_a_log_file_gets_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 10.0, 30.0, 31.0, 60.0])
    monkeypatch.setattr("medalign.runtime.progress.time.monotonic", lambda: next(times))
    screen, file = console(terminal=False)
    progress = ConsoleProgress(screen)
    with progress.stage("encoding", total=1000, done=100):
        for _ in range(4):
            progress.advance(60)
    # 120 images in 30 s, then 240 in 60 s: 4 a second; 780 and 660 are left.
    assert file.getvalue().splitlines() == [
        "encoding: 220 of 1000 images, 4.0 images/s, 3 min left",
        "encoding: 340 of 1000 images, 4.0 images/s, 3 min left",
    ]


def test_a_path_is_printed_as_it_is_on_one_line() -> None:
    screen, file = console(terminal=False)
    path = "/data/[red]/" + 30 * "long/" + "1.png"
    ConsoleProgress(screen).say(path)
    assert file.getvalue() == path + "\n"


def test_counting_begins_a_stage_with_its_first_call() -> None:
    screen, file = console(terminal=True)
    with ConsoleProgress(screen, unit="shards").counting("sealing") as told:
        assert file.getvalue() == ""
        told(1, 4)
        told(3, 4)
    assert "3/4" in file.getvalue()


def test_no_progress_is_a_progress() -> None:
    progress: Progress = NoProgress()
    with progress.stage("x", total=1):
        progress.advance(1)
    progress.say("x")
