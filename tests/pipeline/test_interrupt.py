import signal
import threading
from collections.abc import Iterator

import pytest

from medalign.runtime.processes import WorkerDiedError, interruptible
from medalign.runtime.signals import held_back


@pytest.fixture(autouse=True)
def _hangups_count() -> Iterator[None]:
    """Undo what `nohup` does, should the tests run under it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_imports_to_be_finished(number: signal.Signals) -> None:
    done = []

    def work() -> None:
        with held_back():
            signal.raise_signal(number)
            done.append("imports")
        done.append("what comes after them")

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()
    assert done == ["imports"]


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_repeated_sigterm_does_not_disturb_what_is_being_finished() -> None:
    finished = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()
    assert finished


def test_a_signal_that_reaches_the_workers_first_still_stops_the_build() -> None:
    late = threading.Timer(0.2, signal.raise_signal, [signal.SIGTERM])
    late.start()
    with pytest.raises(KeyboardInterrupt), interruptible():
        raise WorkerDiedError("killed by the same signal")


def test_a_worker_that_died_by_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medalign.runtime.processes._LATE_SECONDS", 0.01)
    with pytest.raises(WorkerDiedError), interruptible():
        raise WorkerDiedError("out of memory")


def test_other_threads_are_left_alone() -> None:
    found = []

    def body() -> None:
        with interruptible():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [before]
