"""How the command line ends."""

import os

import pytest

from medalign import cli
from medalign.pipeline.manifest import ManifestError


class _Raise:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self) -> None:
        raise self.error


def ended(monkeypatch: pytest.MonkeyPatch, error: BaseException, *words: str) -> int:
    monkeypatch.setattr(cli, "app", _Raise(error))
    monkeypatch.setattr("sys.argv", ["medalign", *words])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_bug_is_never_taken_for_something_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, KeyError("features")) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "KeyError: 'features'" in said
    assert said.endswith("medalign: this is a bug of medalign; please report what is above\n")


def test_wrong_input_is_one_line_and_with_debug_its_traceback_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, ManifestError("m.jsonl: line 3: is blank")) == 2
    assert capsys.readouterr().err == "medalign: m.jsonl: line 3: is blank\n"
    assert ended(monkeypatch, ManifestError("m.jsonl: line 3: is blank"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_says_that_the_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, KeyboardInterrupt()) == 130
    assert "run the same command again" in capsys.readouterr().err
