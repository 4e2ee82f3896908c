"""Wrong arguments of every command: one line, exit code 2, and nothing heavy imported."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer

from medalign import cli

HEAVY = ("torch", "transformers", "deepspeed", "zarr", "numpy", "PIL", "matplotlib", "nltk")

# Behind each call stands what its one line must say. The calls run in `place`, see below.
BUILD = "manifest.jsonl --images images --expert demo --out new"
EVAL = "answers.jsonl manifest.jsonl --task"
GENERATE = "run manifest.jsonl --images images --out new.jsonl"
REPORT = "answers.jsonl manifest.jsonl --images images --task vqa --out new.html"
CALLS: dict[str, tuple[tuple[str, str], ...]] = {
    "bench inference": (
        ("nosuch", "STUDENT nosuch: no such folder"),
        ("file", "STUDENT file: is a file, not a folder"),
        ("images", "STUDENT images: is no student (config.json)"),
        ("student images", "RUN images: is no run (recipe.yaml) or adapter"),
        ("student run --image nosuch.png", "--image nosuch.png: no such file"),
        ("student run --image images", "--image images: is a folder, not a file"),
        ("student run --tokens 1", "--tokens 1"),
    ),
    "cache build": (
        ("nosuch.jsonl --images images --expert demo --out new", "MANIFEST nosuch.jsonl: no such"),
        ("images --images images --expert demo --out new", "MANIFEST images: is a folder"),
        ("manifest.jsonl --images file --expert demo --out new", "--images file: is a file"),
        ("manifest.jsonl --images imagse --expert demo --out new", "did you mean images?"),
        ("manifest.jsonl --images images --expert unimed-k --out new", "did you mean unimed-l?"),
        (
            "manifest.jsonl --images images --expert openclip:ViT-B-33 --out new",
            "did you mean openclip:ViT-B-32?",
        ),
        ("manifest.jsonl --images images --expert unimed-l --out new", "give --weights"),
        ("manifest.jsonl --images images --expert demo --out file", "--out file: is a file"),
        ("manifest.jsonl --images images --expert demo --out file/new", "(that is a file)"),
        (f"{BUILD} --weights file", "leave --weights away"),
        (f"{BUILD} --mode paper --geometry pad", "leave --geometry away"),
        (f"{BUILD} --codec fp16 --max-gram-error 0.1", "--codec fp16"),
        (f"{BUILD} --codec grma", "did you mean gram?"),
        (f"{BUILD} --part 5/4", "--part 5/4"),
        (f"{BUILD} --grid 24", "24x24"),
        (f"{BUILD} --device cudo", "did you mean cuda?"),
        (f"{BUILD} --workers many", "--workers many"),
    ),
    "cache diff": (
        ("nosuch images", "A nosuch: no such folder"),
        ("images file", "B file: is a file, not a folder"),
        ("images images --limit -1", "--limit -1"),
    ),
    "cache info": (
        ("nosuch", "STORE nosuch: no such folder"),
        ("file", "STORE file: is a file, not a folder"),
    ),
    "cache merge": (
        ("images nosuch --out new", "STORES nosuch: no such folder"),
        ("images file --out new", "STORES file: is a file"),
        ("images student --out file", "--out file: is a file"),
        ("images student --out images", "--out images: is one of the caches"),
    ),
    "cache seal": (
        ("nosuch", "STORE nosuch: no such folder"),
        ("file", "STORE file: is a file, not a folder"),
        ("images --images nosuch", "--images nosuch: no such folder"),
        ("images --images file", "--images file: is a file"),
        ("images --weights nosuch", "--weights nosuch: no such file or folder"),
        ("images --expert biomedclp", "did you mean biomedclip?"),
        ("images --dtype bf61", "did you mean bf16?"),
    ),
    "cache show": (
        ("nosuch 0", "STORE nosuch: no such folder"),
        ("file 0", "STORE file: is a file, not a folder"),
        ("images 0 --images nosuch", "--images nosuch: no such folder"),
        ("images 0 --patch 3", "--patch 3: is not ROW,COLUMN"),
        ("images 0 --out images", "--out images: is a folder; name a file in it"),
    ),
    "cache status": (
        ("nosuch", "STORE nosuch: no such folder"),
        ("file", "STORE file: is a file, not a folder"),
        ("images student", "unexpected extra argument"),
    ),
    "cache subset": (
        ("nosuch manifest.jsonl --out new", "STORE nosuch: no such folder"),
        ("images nosuch.jsonl --out new", "MANIFEST nosuch.jsonl: no such file"),
        ("images student --out new", "MANIFEST student: is a folder, not a file"),
        ("images manifest.jsonl --out images", "--out images: is one of the caches"),
    ),
    "cache verify": (
        ("nosuch", "STORE nosuch: no such folder"),
        ("file", "STORE file: is a file, not a folder"),
        ("images --recompute 4 --images file", "--images file: is a file"),
        ("images --expert dmo", "did you mean demo?"),
    ),
    "data check": (
        ("nosuch.jsonl", "MANIFEST nosuch.jsonl: no such file"),
        ("manifest.json", "did you mean manifest.jsonl?"),
        ("images", "MANIFEST images: is a folder, not a file"),
        ("manifest.jsonl --images nosuch", "--images nosuch: no such folder"),
        ("manifest.jsonl --decode half", "--decode half: is neither a number nor all"),
    ),
    "data leakage": (
        ("nosuch.jsonl manifest.jsonl", "TRAIN nosuch.jsonl: no such file"),
        ("manifest.jsonl images", "TEST images: is a folder, not a file"),
        ("manifest.jsonl answers.jsonl --images nosuch", "--images nosuch: no such folder"),
        ("manifest.jsonl answers.jsonl --images images --images student", "has a folder already"),
        ("manifest.jsonl answers.jsonl --json manifest.jsonl", "is a manifest of this command"),
        ("manifest.jsonl answers.jsonl --json images", "--json images: is a folder"),
        ("manifest.jsonl answers.jsonl --keep images", "--keep images: is a folder"),
    ),
    "data prepare": (
        ("slak images --out new", "did you mean slake?"),
        ("slake nosuch --out new", "SRC nosuch: no such folder"),
        ("slake file --out new", "SRC file: is a file, not a folder"),
        ("slake images --out file", "--out file: is a file"),
        ("slake images --out new --choose all", "--choose all: is not KEY=VALUE"),
        ("slake images --out new --choose a=1 --choose a=2", "--choose a is given more than once"),
        ("slake images --out new --val-fraction 2", "--val-fraction 2"),
    ),
    "demo": (
        ("--out file", "--out file: is a file; give a folder"),
        ("--out file/new", "(that is a file)"),
        ("extra", "unexpected extra argument"),
    ),
    "doctor": (
        ("nosuch.jsonl", "MANIFEST nosuch.jsonl: no such file"),
        ("images", "MANIFEST images: is a folder, not a file"),
        ("--images file", "--images file: is a file, not a folder"),
        ("--cache nosuch", "--cache nosuch: no such folder"),
        ("--student images", "--student images: is no student (config.json)"),
        ("--recipe llava-med-slak", "did you mean llava-med-slake?"),
    ),
    "eval compare": (
        ("nosuch.jsonl answers.jsonl manifest.jsonl --task vqa", "A nosuch.jsonl: no such file"),
        ("answers.jsonl images manifest.jsonl --task vqa", "B images: is a folder"),
        (f"answers.jsonl {EVAL} vaq", "did you mean vqa?"),
        (f"answers.jsonl {EVAL} vqa --metrics opn", "did you mean open?"),
        (f"answers.jsonl {EVAL} vqa --out answers.jsonl", "would overwrite what is compared"),
    ),
    "eval figures": (
        ("nosuch --out new", "RUN_OR_STUDENT nosuch: no such folder"),
        ("file --out new", "RUN_OR_STUDENT file: is a file, not a folder"),
        ("images --out new", "RUN_OR_STUDENT images: is no run (recipe.yaml), adapter"),
        ("run ./run --out new", "RUN_OR_STUDENT run: is given twice"),
        ("run --out file", "--out file: is a file; give a folder"),
        ("run --out new --format pgn", "did you mean png?"),
        ("run --out new --layer 2", "give --manifest and --images"),
        ("run --out new --manifest nosuch.jsonl --images images", "--manifest nosuch.jsonl"),
        (
            "run --out new --manifest manifest.jsonl --images images --cache file",
            "--cache file: is",
        ),
    ),
    "eval generate": (
        ("nosuch manifest.jsonl --images images --out new.jsonl", "SOURCE nosuch: no such folder"),
        ("file manifest.jsonl --images images --out new.jsonl", "SOURCE file: is a file"),
        ("run nosuch.jsonl --images images --out new.jsonl", "MANIFEST nosuch.jsonl: no such file"),
        ("run images --images images --out new.jsonl", "MANIFEST images: is a folder"),
        ("run manifest.jsonl --images file --out new.jsonl", "--images file: is a file"),
        ("run manifest.jsonl --images images --out images", "--out images: is a folder"),
        (f"{GENERATE} --decoder gredy", "did you mean greedy?"),
        (f"{GENERATE} --preset papper", "did you mean paper?"),
        (f"{GENERATE} --set beams", "--set beams: is not KEY=VALUE"),
        (f"{GENERATE} --decoder beam --beams 3 --set beams=4", "beams is given twice"),
        (f"{GENERATE} --temperature 0.5", "--temperature is no setting of --decoder greedy"),
        (f"{GENERATE} --part 0/2", "--part 0/2"),
        (f"{GENERATE} --student images", "--student images: is no student"),
    ),
    "eval lmms-tasks": (("extra", "unexpected extra argument"),),
    "eval report": (
        (
            "nosuch.jsonl manifest.jsonl --images images --task vqa --out new.html",
            "PREDICTIONS nos",
        ),
        ("answers.jsonl images --images images --task vqa --out new.html", "images: is a folder"),
        (f"{REPORT} --metrics bleu", "unknown metric of task vqa"),
        (f"answers.jsonl {REPORT}", "answers.jsonl: is given twice"),
        (f"{REPORT} --source run --source images/../run", "is given twice"),
        (f"{REPORT} --layer 3", "give --source as well"),
        (f"{REPORT} --source images", "--source images: is no run (recipe.yaml), adapter"),
        (f"{REPORT} --scores nosuch.json", "--scores nosuch.json: no such file"),
        (f"{REPORT} --cache nosuch", "--cache nosuch: no such folder"),
        (f"{REPORT} --out answers.jsonl", "would overwrite what is shown"),
    ),
    "eval report-texts": (
        ("nosuch.jsonl --manifest manifest.jsonl --out new.json", "PREDICTIONS nosuch.jsonl: no"),
        ("answers.jsonl --manifest images --out new.json", "--manifest images: is a folder"),
        ("answers.jsonl --manifest manifest.jsonl --out answers.jsonl", "would overwrite what is"),
    ),
    "eval score": (
        ("nosuch.jsonl manifest.jsonl --task vqa --out new.json", "PREDICTIONS nosuch.jsonl: no"),
        ("answers.jsonl images --task vqa --out new.json", "MANIFEST images: is a folder"),
        (f"{EVAL} vaq --out new.json", "did you mean vqa?"),
        (f"{EVAL} report --out new.json --metrics bluE", "did you mean bleu?"),
        (f"{EVAL} report --out new.json --metrics ,", "names no metric"),
        (f"{EVAL} vqa --out manifest.jsonl", "would overwrite what is scored"),
        (f"{EVAL} report --out new.json --bertscore file", "--bertscore file: is a file"),
        (f"{EVAL} report --out new.json --chexbert nosuch.pth", "--chexbert nosuch.pth: no such"),
        (
            f"{EVAL} report --out new.json --radgraph file --radgraph-annotations file",
            "give it, or --radgraph and --radgraph-bert, not both",
        ),
    ),
    "eval table": (
        ("nosuch.json", "SCORES nosuch.json: no such file"),
        ("images", "SCORES images: is a folder, not a file"),
        ("scores.json --metrics blue", "did you mean bleu?"),
        ("scores.json --format latx", "did you mean latex?"),
        ("scores.json --out new.csv", "give --format"),
        ("scores.json --format csv --out scores.json", "would overwrite what is read"),
    ),
    "export": (
        ("nosuch --out new", "RUN nosuch: no such folder"),
        ("file --out new", "RUN file: is a file, not a folder"),
        ("images --out new", "RUN images: is no run (recipe.yaml)"),
        ("run --out file", "--out file: is a file; give a folder"),
        ("run --out new --checkpoint newest", "is not step-N, last or best"),
        ("run --out new --dtype bf61", "did you mean bf16?"),
        ("run --out new --manifest images", "--manifest images: is a folder"),
    ),
    "recipes": (("shw", "did you mean show?"),),
    "recipes commands": (
        ("llava-med-slak", "did you mean llava-med-slake?"),
        ("nosuch.yaml", "no recipe 'nosuch.yaml'"),
        ("llava-med-slake+no-at", "did you mean no-att?"),
        ("llava-med-slake --set lr", "--set lr: is not KEY=VALUE"),
        ("llava-med-slake --gpus 0", "--gpus 0"),
    ),
    "recipes cost": (("llava-med-slak", "did you mean llava-med-slake?"),),
    "recipes reference": (("extra", "unexpected extra argument"),),
    "recipes show": (
        ("images", "no recipe 'images'"),
        ("no-att", "is a part, not a whole recipe"),
        ("llava-med-slake --set lr", "--set lr: is not KEY=VALUE"),
    ),
    "student check": (
        ("nosuch", "DIR nosuch: no such folder"),
        ("file", "DIR file: is a file, not a folder"),
        ("images", "DIR images: is no student (config.json)"),
    ),
    "student convert": (
        ("nosuch --family llava-med --out new", "SRC nosuch: no such folder"),
        ("file --family llava-med --out new", "SRC file: is a file, not a folder"),
        ("images --family llava-mad --out new", "did you mean llava-med?"),
        ("images --family llava-med --out file", "--out file: is a file"),
        ("images --family llava-med --out new --vision-tower nosuch", "--vision-tower nosuch: no"),
        ("images --family llava-med --out new --tower-weights folder", "needs --vision-tower"),
        ("images --family llava-med --out new --shard-gb nan", "--shard-gb nan"),
    ),
    "train": (
        ("llava-med-slak", "did you mean llava-med-slake?"),
        ("nosuch.yaml", "no recipe 'nosuch.yaml'"),
        ("images", "no recipe 'images'"),
        ("llava-med-slake+no-at", "did you mean no-att?"),
        ("demo --cache nosuch", "--cache nosuch: no such folder"),
        ("demo --cache file", "--cache file: is a file, not a folder"),
        ("demo --manifest nosuch.jsonl", "--manifest nosuch.jsonl: no such file"),
        ("demo --manifest images", "--manifest images: is a folder"),
        ("demo --images file", "--images file: is a file"),
        ("demo --student images", "--student images: is no student"),
        ("demo --out file", "--out file: is a file; give a folder"),
        ("demo --set lr", "--set lr: is not KEY=VALUE"),
        ("demo --json", "--json goes with --plan"),
        ("demo --manifest manifest.jsonl --images images", "give --cache STORE"),
        ("llava-med-slake --images images", "the recipe names no student: give --student"),
    ),
}

# Forks from one process: it has imported the command line once, as each call would.
PROBE = f"""
import json, os, sys, tempfile
from medalign.cli import main

def call(words):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["medalign", *words]
            code = 0
            try:
                main()
            except SystemExit as end:
                code = end.code
            print(*sorted({set(HEAVY)} & set(sys.modules)), flush=True)
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()

print(json.dumps([call(words) for words in json.load(sys.stdin)]))
"""

Call = tuple[str, ...]


def commands(app: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every command by its words, with the function that it calls."""
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        yield " ".join((*path, name)), command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        name = str(group.name)
        callback = group.typer_instance.registered_callback
        if callback is not None and callback.invoke_without_command:
            yield " ".join((*path, name)), callback.callback
        yield from commands(group.typer_instance, (*path, name))


COMMANDS = dict(commands(cli.app))


WRONG: dict[Call, str] = {
    (*command.split(), *words.split()): said
    for command, calls in CALLS.items()
    for words, said in calls
}
UNKNOWN: dict[Call, str] = {
    (*command.split(), "--nosuch"): f"{command}: unknown option --nosuch" for command in COMMANDS
}
USAGE = (
    ("cahce", "unknown command cahce; did you mean cache?"),
    ("cache bild", "cache: unknown command bild; did you mean build?"),
    ("--versoin", "did you mean --version?"),
    ("cache build manifest.jsonl", "--images is missing"),
    ("cache build --images", "'--images' requires an argument"),
    ("cache status", "STORE is missing"),
    ("cache status --jsn", "did you mean --json?"),
    ("cache status nosuch/deep/er", "STORE nosuch/deep/er: no such folder: . has no folder no"),
    ("cache status no\nsuch", "STORE no\\nsuch: no such folder"),
    ("cache status s3://bucket/store --jsno", "did you mean --json?"),
)
NO_CACHE = (
    ("cache seal images", "is not a teacher cache"),
    (
        "train demo --manifest manifest.jsonl --images images --cache images",
        "is not a teacher cache",
    ),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the calls name; the contents are never read."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("file", "manifest.jsonl", "answers.jsonl", "scores.json"):
        (folder / name).write_text("{}\n")
    for name in ("images", "student", "run"):
        (folder / name).mkdir()
    (folder / "student" / "config.json").write_text("{}")
    (folder / "run" / "recipe.yaml").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def ended(place: Path) -> dict[Call, tuple[int, str, str]]:
    """Exit code, modules of `HEAVY` and standard error of every call, made in `place`."""
    ours = ("MEDALIGN", "RANK", "WORLD_SIZE", "SLURM")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    calls = [*WRONG, *UNKNOWN, *(tuple(words.split(" ")) for words, _ in (*USAGE, *NO_CACHE))]
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(calls),
        cwd=place,
        env={**environment, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return {call: tuple(end) for call, end in zip(calls, json.loads(done.stdout), strict=True)}


def refused(end: tuple[int, str, str], said: str) -> None:
    """Check that a call ended with code 2 and one line."""
    code, _, error = end
    assert (code, error[:10], error.count("\n")) == (2, "medalign: ", 1), error
    assert said in error


def test_every_command_has_wrong_calls() -> None:
    assert sorted(CALLS) == sorted(COMMANDS)


@pytest.mark.parametrize(("call", "said"), WRONG.items(), ids=" ".join)
def test_a_wrong_call_is_one_line_before_anything_heavy(
    ended: dict[Call, tuple[int, str, str]], call: Call, said: str
) -> None:
    refused(ended[call], said)
    assert ended[call][1] == "\n"


@pytest.mark.parametrize(("call", "said"), UNKNOWN.items())
def test_an_unknown_option_is_named(
    ended: dict[Call, tuple[int, str, str]], call: Call, said: str
) -> None:
    refused(ended[call], said)
    assert ended[call][1] == "\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_is_checked(command: str) -> None:
    """A `Path` without a check would be found wrong only behind the import of torch."""
    for name, hint in get_type_hints(COMMANDS[command], include_extras=True).items():
        if get_origin(hint) is Annotated and "Path" in str(get_args(hint)[0]):
            assert get_args(hint)[1].callback is not None, f"{command}: {name}"


@pytest.mark.parametrize(("words", "said"), USAGE)
def test_wrong_usage_is_one_line_with_the_nearest_name(
    ended: dict[Call, tuple[int, str, str]], words: str, said: str
) -> None:
    refused(ended[tuple(words.split(" "))], said)


@pytest.mark.parametrize(("words", "said"), NO_CACHE)
def test_a_folder_that_is_no_cache_is_refused_before_torch(
    ended: dict[Call, tuple[int, str, str]], words: str, said: str
) -> None:
    end = ended[tuple(words.split(" "))]
    refused(end, said)
    assert "torch" not in end[1].split()


def test_a_process_of_its_own_says_the_same(place: Path) -> None:
    words = [sys.executable, "-m", "medalign", "cache", "status", "nosuch"]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "medalign: STORE nosuch: no such folder; expected: folder or URL of a cache\n"
    )
