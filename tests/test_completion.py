"""What the shell completes, through typer's own machinery."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medalign import cli

COMPLETED = (
    ("cac", ["cache"]),
    ("cache se", ["seal"]),
    ("cache build m.jsonl --imag", ["--images"]),
    ("train llava-med-sl", ["llava-med-slake"]),
    ("train llava-med-slake+no", ["llava-med-slake+no-att", "llava-med-slake+no-vis"]),
    ("recipes show huatuo-sl", ["huatuo-slake"]),
    ("doctor --recipe huatuo-sl", ["huatuo-slake"]),
    ("cache build m.jsonl --expert uni", ["unimed-l", "unimed-b"]),
    ("cache seal store --expert openclip:ViT-B-32-q", ["openclip:ViT-B-32-quickgelu"]),
    ("data prepare pa", ["pathvqa"]),
    ("eval generate run --decoder a", ["avisc"]),
    ("eval generate run --preset medalign-h", ["medalign-huatuo"]),
    ("eval score a m --task v", ["vqa"]),
    ("eval score a m --metrics bleu,rou", ["bleu,rouge_l"]),
    ("eval table s --format la", ["latex"]),
    ("eval figures run --format s", ["svg"]),
    ("student convert src --family hu", ["huatuo-vision"]),
)
FILES = (
    "train mine",
    "cache status ",
    "cache build ",
    "cache build m.jsonl --images ",
    "eval generate ",
    "export run --out ",
)
HEAVY = {"torch", "transformers", "zarr", "numpy"}


def complete(shell: str, line: str) -> str:
    """Return what the completion of a line prints; it imports nothing of `HEAVY`."""
    words = f"medalign {line}"
    code = (
        "import sys; from medalign.cli import main; sys.argv[0] = 'medalign'\n"
        f"try:\n    main()\nfinally:\n    assert not {HEAVY} & set(sys.modules)\n"
    )
    request = {
        "_MEDALIGN_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "PYTHONPATH": str(Path(cli.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **request},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(("line", "names"), COMPLETED)
def test_names_are_completed_in_bash(line: str, names: list[str]) -> None:
    assert complete("bash", line).split() == names


@pytest.mark.parametrize(("line", "names"), [COMPLETED[0], *COMPLETED[4:8], COMPLETED[10]])
def test_names_are_completed_in_zsh(line: str, names: list[str]) -> None:
    shown = complete("zsh", line)
    assert shown.startswith("_arguments '*: :((")
    for name in names:
        assert f'"{name}"' in shown.replace("\\", "")


@pytest.mark.parametrize("line", FILES)
def test_paths_are_left_to_the_shell(line: str) -> None:
    assert complete("bash", line).strip() == ""
    assert complete("zsh", line).strip() == "_files"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_a_shell_names_the_command(shell: str) -> None:
    code = "import sys; from medalign.cli import main; sys.argv[0] = 'medalign'; main()"
    request = {
        "_MEDALIGN_COMPLETE": f"source_{shell}",
        "PYTHONPATH": str(Path(cli.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **request},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_MEDALIGN_COMPLETE" in done.stdout
    assert "medalign" in done.stdout
