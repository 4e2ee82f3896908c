import faulthandler
import multiprocessing
import os
import pickle  # noqa: TID251 - what a spawned worker receives
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from medalign.pipeline.manifest import read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.trainer.data.batch import Batch, Sample
from medalign.trainer.data.conversation import Encoded
from medalign.trainer.data.dataset import Conversations, PackedRecords
from medalign.trainer.data.loader import DataWorkerError, StartMethod, micro_batches
from medalign.trainer.data.order import StepOrder
from medalign.trainer.data.teacher import Patches
from medalign.trainer.students.spec import read_student

Made = Callable[..., tuple[Path, Path, Path]]


class Numbers(Dataset[Sample]):
    """Samples that say their number, how many were read and who read them; some do harm."""

    def __init__(
        self, log: Path, deadly: int = -1, sign: int = signal.SIGKILL, scarce: int | None = None
    ) -> None:
        self.log, self.deadly, self.sign, self.scarce = log, deadly, sign, scarce

    def __getitem__(self, index: int) -> Sample:
        with self.log.open("a") as log:
            log.write(f"{os.getpid()} {index}\n")
        if index == self.deadly:
            faulthandler.disable()  # no page of traceback for a death that is meant
            os.kill(os.getpid(), self.sign)
        if self.scarce is not None:  # of which this worker is left nothing
            resource.setrlimit(self.scarce, (0, 0))
        ids = np.asarray([5, index], np.int64)
        return Sample(str(index), Encoded(ids, ids, (), (), cut=0))


def tensors(batch: Batch) -> list[torch.Tensor]:
    found = [batch.input_ids, batch.attention_mask, batch.predicts, batch.targets]
    if batch.pixel_values is not None:
        found.append(batch.pixel_values)
    if batch.teacher is not None:
        assert isinstance(batch.teacher.spatial, Patches)
        found += [batch.teacher.spatial.features, batch.teacher.attention, batch.teacher.look.cols]
    return found


def alone(count: int) -> list[list[int]]:
    return [[k] for k in range(count)]


def readers(log: Path) -> set[int]:
    return {int(line.split()[0]) for line in log.read_text().splitlines()}


def gone(pids: set[int], seconds: float = 10.0) -> bool:
    """Whether these processes end within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(running(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_worker_processes_change_no_batch(
    start_method: StartMethod, dataset: Made, students: Callable[..., Path]
) -> None:
    manifest, images, store = dataset(images=5, records=9)
    records = PackedRecords(read_manifest(manifest))
    (images / "1.png").write_bytes((images / "2.png").read_bytes())  # refused, in a worker too
    samples = Conversations(
        records, images, read_student(students()), 512, TeacherCache.open(store)
    )
    order = StepOrder(9, 0, 2, 2, 0, 1, 1, 4)
    one = list(micro_batches(samples, order, 0, 0))
    # A spawned worker takes seconds to start, so one must do.
    workers = 2 if start_method == "fork" else 1
    two = list(micro_batches(samples, order, 0, workers, 2, start_method=start_method))
    assert len(one) == len(two) == 6
    assert sum(len(batch.refused) for batch in one) > 0
    for a, b in zip(one, two, strict=True):
        assert (a.ids, a.refused, a.teacher_images) == (b.ids, b.refused, b.teacher_images)
        for mine, other in zip(tensors(a), tensors(b), strict=True):
            assert torch.equal(mine, other)
    assert not multiprocessing.active_children()


def test_a_set_can_be_sent_to_a_spawned_process(
    dataset: Made, students: Callable[..., Path]
) -> None:
    manifest, images, store = dataset(images=2, records=2)
    samples = Conversations(
        read_manifest(manifest), images, read_student(students()), 512, TeacherCache.open(store)
    )
    _ = samples[0]  # with handles open
    again = pickle.loads(pickle.dumps(samples))
    assert np.array_equal(again[1].pixels[0], samples[1].pixels[0])


@pytest.mark.parametrize(
    ("workers", "prefetch", "accumulation", "bound"), [(1, 2, 3, 6), (2, 2, 3, 6), (2, 1, 1, 2)]
)
def test_no_more_is_read_ahead_than_stated(
    tmp_path: Path, workers: int, prefetch: int, accumulation: int, bound: int
) -> None:
    samples = Numbers(tmp_path / "log")
    batches = micro_batches(samples, alone(40), 0, workers, accumulation, prefetch=prefetch)
    for taken in range(1, 6):
        assert next(batches).ids == (str(taken - 1),)
        time.sleep(0.1)
        asked = len((tmp_path / "log").read_text().splitlines())
        assert asked <= bound + taken
    batches.close()


@pytest.mark.parametrize(
    ("sign", "said"),
    [
        (signal.SIGKILL, r"was killed, as the system does when memory is full"),
        (signal.SIGUSR1, r"ended unexpectedly \(exit code -10\)"),
    ],
)
def test_a_worker_that_dies_is_one_clear_error_and_ends_the_others(
    tmp_path: Path, sign: int, said: str
) -> None:
    samples = Numbers(tmp_path / "log", deadly=3, sign=sign)
    begun = time.monotonic()
    with pytest.raises(
        DataWorkerError, match=rf"{said}.*; lower data\.workers or --workers \(now 2; 0"
    ) as caught:
        list(micro_batches(samples, alone(1000), 0, 2))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 10
    assert gone(readers(tmp_path / "log"))


@pytest.mark.parametrize(
    ("scarce", "said"),
    [(resource.RLIMIT_FSIZE, "File too large"), (resource.RLIMIT_NOFILE, "Too many open files")],
)
def test_want_of_shared_memory_is_one_clear_error(tmp_path: Path, scarce: int, said: str) -> None:
    samples = Numbers(tmp_path / "log", scarce=scarce)
    with pytest.raises(
        DataWorkerError, match=rf"shared memory \(/dev/shm\): .*{said}.*; lower data\.workers"
    ):
        list(micro_batches(samples, alone(3), 0, 1))
    assert gone(readers(tmp_path / "log"))


def test_a_long_folder_for_temporary_files_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 25)  # as schedulers give to their jobs
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    batches = micro_batches(Numbers(tmp_path / "log"), alone(3), 0, 1, start_method="fork")
    assert [batch.ids for batch in batches] == [("0",), ("1",), ("2",)]


def test_a_bug_in_a_worker_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Numbers, __: int) -> Sample:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Numbers, "__getitem__", broken)
    with pytest.raises(ZeroDivisionError, match=r"(?s)in broken.*a bug"):
        list(micro_batches(Numbers(tmp_path / "log"), alone(3), 0, 1))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_leave_signals_to_the_parent(
    tmp_path: Path, method: StartMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # a spawned worker imports this file
    batches = micro_batches(Numbers(tmp_path / "log"), alone(30), 0, 1, start_method=method)
    assert next(batches).ids == ("0",)
    pids = readers(tmp_path / "log")
    for pid in pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGHUP)
    assert [batch.ids for batch in batches] == [(str(k),) for k in range(1, 30)]
    assert readers(tmp_path / "log") == pids


def test_leaving_early_ends_the_workers(tmp_path: Path) -> None:
    batches = micro_batches(Numbers(tmp_path / "log"), alone(30), 0, 1)
    assert next(batches).ids == ("0",)
    pids = readers(tmp_path / "log")
    assert any(running(pid) for pid in pids)
    batches.close()
    assert gone(pids)


def killed_while_reading(log: Path) -> None:
    batches = micro_batches(Numbers(log), alone(99), 0, 2)
    next(batches)
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    parent = fork.Process(target=killed_while_reading, args=(tmp_path / "log",))
    parent.start()
    parent.join()
    assert parent.exitcode == -signal.SIGKILL
    pids = readers(tmp_path / "log")
    assert pids
    assert gone(pids)


UNCLOSED = """
import sys
from pathlib import Path
from medalign.trainer.data.loader import micro_batches
sys.path.insert(0, sys.argv[1])
from test_workers import Numbers, alone
batches = micro_batches(Numbers(Path(sys.argv[2])), alone(9), 0, 1)
next(batches)
raise KeyError("a bug")
"""


def test_a_program_that_fails_between_batches_ends(tmp_path: Path) -> None:
    here, log = str(Path(__file__).parent), str(tmp_path / "log")
    command = [sys.executable, "-c", UNCLOSED, here, log]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("KeyError: 'a bug'\n")
    assert gone(readers(tmp_path / "log"))


def test_room_for_open_files_is_made_for_many_batches_ahead(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        batches = micro_batches(Numbers(tmp_path / "log"), alone(300), 0, 2, 100, prefetch=3)
        assert len(list(batches)) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
