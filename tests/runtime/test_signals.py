import signal
import threading
from collections.abc import Iterator

import pytest

from medalign.runtime.signals import StopRequest, held_back, interruptible, unheard


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


def test_the_first_signal_asks_to_stop_and_ctrl_c_after_it_interrupts(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        heard = [stop.asked]
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # schedulers repeat it
        heard.append(stop.asked)
        assert heard == [False, True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopping after this step" in capfd.readouterr().err


def test_a_stop_is_not_asked_for_by_what_nohup_ignores() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert not stop.asked


def test_signals_that_new_processes_do_not_hear_are_heard_after_the_block() -> None:
    done = []

    def work() -> None:
        with unheard(signal.SIGTERM):
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            assert signal.SIGTERM in blocked  # a new process inherits this
            signal.raise_signal(signal.SIGTERM)
            done.append("started")

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()
    assert done == ["started"]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
