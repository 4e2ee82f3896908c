"""How the command line ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

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


def run_main(app: str, *before: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line with another app, in a process of its own."""
    code = f"import os, signal, sys\nfrom medalign import cli\n{app}\ncli.app = app\ncli.main()\n"
    path = [*map(str, before), str(Path(cli.__file__).parents[1])]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_interruption_while_torch_starts_is_no_crash(tmp_path: Path) -> None:
    """Torch's start, in which an exception ends the process with SIGABRT, is acted."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    [0 for _ in range(10**6)]\n"
        "except KeyboardInterrupt:\n    os.abort()\n"
    )
    done = run_main("def app(): import torch", tmp_path)
    assert (done.returncode, done.stderr) == (130, f"medalign: {cli.INTERRUPTED}\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_lets_a_command_clean_up_and_says_how_to_go_on(name: str) -> None:
    app = (
        "import typer\n"
        "@cli.app.command()\ndef wait():\n    try:\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "        [0 for _ in range(10**6)]\n"
        "    finally:\n        print('cleaned up')\n"
        "sys.argv[1:] = ['wait']\napp = cli.app"
    )
    done = run_main(app)
    assert (done.returncode, done.stdout) == (130, "cleaned up\n")
    assert done.stderr == f"medalign: {cli.INTERRUPTED}\n"


def test_a_signal_while_words_are_parsed_says_so_too() -> None:
    app = (
        "import typer\n"
        "def parse(given: str) -> str:\n    signal.raise_signal(signal.SIGINT)\n"
        "@cli.app.callback()\ndef options(name: str = typer.Option('', parser=parse)): pass\n"
        "sys.argv[1:] = ['--name', 'x', 'recipes']\napp = cli.app"
    )
    done = run_main(app)
    assert (done.returncode, done.stderr) == (130, f"medalign: {cli.INTERRUPTED}\n")


def test_a_signal_while_an_object_is_destroyed_is_not_lost() -> None:
    app = (
        "import time\n"
        "class Doomed:\n    def __del__(self):\n        signal.raise_signal(signal.SIGTERM)\n"
        "def app():\n    Doomed()\n    try:\n        time.sleep(30)\n"
        "    finally:\n        print('cleaned up')"
    )
    done = run_main(app)
    assert (done.returncode, done.stdout) == (130, "cleaned up\n")
    assert done.stderr == f"medalign: {cli.INTERRUPTED}\n"


def test_a_forked_process_ends_by_a_signal_as_any_other() -> None:
    app = (
        "import time\n"
        "def app():\n    ready, begun = os.pipe()\n    child = os.fork()\n"
        "    if not child:\n        os.write(begun, b'!')\n"
        "        while True:\n            time.sleep(0.01)\n"
        "    os.read(ready, 1)\n    os.kill(child, signal.SIGTERM)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = run_main(app)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{-signal.SIGTERM}\n", "")


def test_what_is_ignored_stays_ignored() -> None:
    app = (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "def app():\n    signal.raise_signal(signal.SIGHUP)\n    print('goes on')"
    )
    assert run_main(app).stdout == "goes on\n"


def helps(command: Any, path: str = "medalign") -> Iterator[tuple[str, str]]:
    """Path and help text of a command and of those below it."""
    yield path, command.help or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, f"{path} {name}")


def test_help_is_not_broken_twice() -> None:
    """A terminal of 80 columns would break longer lines once more, in the middle."""
    for path, text in helps(typer.main.get_command(cli.app)):
        for line in text.splitlines()[1:]:
            assert len(line) <= 78, f"{path}: {line}"


@pytest.mark.parametrize("words", [("demo", "--out", ""), ("cache", "info", "")])
def test_an_empty_argument_is_never_the_current_folder(
    medalign: Callable[..., str], words: tuple[str, ...]
) -> None:
    assert "an argument is empty" in medalign(*words, code=2)
