import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from medalign.runtime.processes import WorkerDiedError, Workers, default_workers, result_of
from medalign.runtime.signals import interruptible


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_order(count: int) -> None:
    with Workers(count) as workers:
        assert list(workers.map(abs, range(-20, 0), ahead=3)) == list(range(20, 0, -1))


def test_tasks_are_taken_only_as_far_as_needed() -> None:
    taken = []

    def tasks() -> "list[int]":  # type: ignore[misc]
        for number in range(100):
            taken.append(number)
            yield number

    with Workers(1) as workers:
        results = workers.map(abs, tasks(), ahead=4)
        for _ in range(3):
            next(results)
        assert len(taken) == 3 + 4


def test_a_worker_that_dies_is_an_error() -> None:
    with Workers(1) as workers, pytest.raises(WorkerDiedError, match="worker process died"):
        list(workers.map(os._exit, [1], ahead=1))


def test_a_signal_that_reaches_the_workers_first_is_still_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def late(_seconds: float) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("medalign.runtime.processes.time.sleep", late)
    with Workers(1) as workers, pytest.raises(KeyboardInterrupt), interruptible():
        result_of(workers.submit(os._exit, 1))


def test_an_error_of_the_function_comes_back() -> None:
    with Workers(1) as workers, pytest.raises(ValueError, match="invalid literal"):
        list(workers.map(int, ["1", "x"], ahead=2))


def test_workers_leave_ctrl_c_to_the_parent() -> None:
    with Workers(1) as workers:
        assert list(workers.map(signal.getsignal, [signal.SIGINT], ahead=1)) == [signal.SIG_IGN]


def test_workers_are_born_deaf_to_what_reaches_a_whole_terminal() -> None:
    blocked = partial(signal.pthread_sigmask, signal.SIG_BLOCK)
    with Workers(1) as workers:
        (found,) = workers.map(blocked, [set[int]()], ahead=1)
    assert {signal.SIGINT, signal.SIGHUP} <= found
    assert not blocked(set()) & {signal.SIGINT, signal.SIGHUP}


@pytest.mark.parametrize(
    "begin",
    [
        lambda workers: next(workers.map(abs, [-1, -2], ahead=2)),
        lambda workers: workers.submit(abs, -1),
    ],
)
def test_the_start_of_a_worker_is_never_torn_apart(
    begin: Callable[[Workers], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def submit(_: ProcessPoolExecutor, function: object, task: object) -> Future[int]:
        signal.raise_signal(signal.SIGINT)
        started.append((function, task))
        return Future()

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    with Workers(1) as workers, interruptible(), pytest.raises(KeyboardInterrupt):
        begin(workers)
    assert started == [(abs, -1)]


def test_workers_load_neither_torch_nor_zarr() -> None:
    code = (
        "import sys, medalign.pipeline.decode as s\n"
        "print([m for m in ('torch', 'zarr', 'open_clip', 'rich') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, pathlib, time\n"
        "from medalign.runtime.processes import Workers\n"
        "with Workers(2) as workers:\n"
        "    found = workers.map(os.path.realpath, ['/proc/self'] * 8, 8)\n"
        f"    pathlib.Path({str(pids)!r}).write_text(' '.join({{p[6:] for p in found}}))\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        workers = [int(pid) for pid in wait_for(pids).split()]
        assert workers
        assert all(Path(f"/proc/{pid}").exists() for pid in workers)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def test_a_closed_terminal_does_not_end_what_keeps_track_of_semaphores() -> None:
    code = (
        "from multiprocessing.resource_tracker import _resource_tracker\n"
        "from pathlib import Path\n"
        "from medalign.runtime.processes import Workers\n"
        "with Workers(1):\n"
        "    print(Path(f'/proc/{_resource_tracker._pid}/status').read_text())\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    blocked = next(line for line in found.stdout.splitlines() if line.startswith("SigBlk"))
    assert int(blocked.split()[1], 16) & 1 << signal.SIGHUP - 1


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path.read_text()


def test_the_default_is_at_most_eight() -> None:
    assert 1 <= default_workers() <= 8


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="takes a number from 0, got -1"):
        Workers(-1)
