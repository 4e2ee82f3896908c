import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from medalign.pipeline.commands.cache import cache
from medalign.pipeline.pixels import PixelsError
from medalign.runtime.arguments import ArgumentError
from medalign.teacher_cache.origin import load_origin, save_origin

IMAGES = 10


def arguments(folder: Path, *more: str) -> list[str]:
    needed = ["--images", str(folder / "images"), "--out", str(folder / "store")]
    quick = ["--workers", "0", "--shard-rows", "4", "--batch-size", "4"]
    expert = [] if "--expert" in more else ["--expert", "demo"]
    return ["build", str(folder / "manifest.jsonl"), *needed, *quick, *expert, *more]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cache, [str(word) for word in words])


@pytest.fixture
def store(folder: Path) -> Path:
    assert run(*arguments(folder)).exit_code == 0
    return folder / "store"


def test_build_says_what_it_did_and_what_comes_next(folder: Path) -> None:
    result = run(*arguments(folder))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"store      {folder / 'store'}"
    assert "10 in 11 records, 10 distinct and readable" in lines[1]
    assert "1 record without an image" in lines[2]
    assert "3 of 3 are there, 3 written by this run" in lines[3]
    assert "images/s" in lines[4]
    assert lines[-1] == f"next       medalign cache seal {folder / 'store'}"
    assert "expert demo: 336 px, 24x24 patches of width 64, float32 on cpu" in result.stderr


def test_a_second_build_says_what_it_reuses(folder: Path, store: Path) -> None:
    result = run(*arguments(folder))
    assert result.exit_code == 0
    assert "3 of 3 are there; nothing to do in this run" in result.stdout
    assert "3 of 3 shards are there already and stay" in result.stderr
    assert run("seal", store, "--recompute", "0").exit_code == 0
    assert "nothing; the cache is sealed" in run(*arguments(folder)).stdout


@pytest.mark.usefixtures("store")
def test_an_origin_that_cannot_be_saved_does_not_stop_a_build_with_nothing_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, _data: bytes) -> None:
        raise PermissionError(13, "read-only", str(path))

    monkeypatch.setattr("medalign.teacher_cache.storage.local.write_durably", read_only)
    (folder / "images").rename(folder / "moved")
    result = run(*arguments(folder, "--images", str(folder / "moved")))
    assert result.exit_code == 0, result.output
    assert "nothing to do in this run" in result.stdout


def test_unreadable_images_are_listed_and_exit_1(folder: Path) -> None:
    (folder / "images" / "3.png").write_bytes(b"")
    (folder / "images" / "4.png").write_bytes(b"nothing")
    result = run(*arguments(folder))
    assert result.exit_code == 1
    assert "2 images: 1 not readable as files, 1 not decodable" in result.stdout
    assert "3.png: is empty (0 bytes)" in result.stdout
    assert "4.png: is not an image" in result.stdout
    failures = json.loads(run("status", folder / "store", "--json").stdout)["failures"]
    assert [path for path, _ in failures] == ["3.png", "4.png"]


def test_images_are_those_of_the_manifest_that_can_be_read(folder: Path) -> None:
    broken = folder / "images" / "4.png"
    kept = broken.read_bytes()
    broken.write_bytes(b"nothing")
    assert "10 in 11 records, 9 distinct and readable" in run(*arguments(folder)).stdout
    broken.write_bytes(kept)
    mended = run(*arguments(folder)).stdout.splitlines()
    assert mended[1] == "images     10 in 11 records, 10 distinct and readable"
    assert mended[2] == "rows       11 in the store, 1 of other images than these"
    for sealed in (False, True):
        rows = run("status", folder / "store").stdout.splitlines()[2]
        said = "; 1 of them without data, as the image could not be decoded, and no path"
        assert rows.endswith(f"{said} leads to 1 of these any more")
        assert sealed or run("seal", folder / "store", "--recompute", "0").exit_code == 0


def test_status_counts_shards_so_that_number_0_is_no_count(folder: Path, store: Path) -> None:
    (store / "attention" / "c.0.0").unlink()
    (store / "_commit" / "2.json").unlink()
    lines = run("status", store).stdout.splitlines()
    assert lines[1] == "state    building, not for training yet"
    assert lines[2:6] == [
        "rows     4 of 10 written",
        "shards   1 of 3 complete, 1 pending, 1 damaged",
        "pending  number 2, counted from 0",
        "damaged  number 0, counted from 0",
    ]
    (folder / "images" / "0.png").write_bytes(b"nothing")
    assert run(*arguments(folder, "--out", str(folder / "other"))).exit_code == 1
    rows = run("status", folder / "other").stdout.splitlines()[2]
    assert rows.endswith("; 1 of them without data, as the image could not be decoded")


def test_status_gives_the_exact_commands_that_finish_a_build(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = folder / "a b"
    spaced.mkdir()
    monkeypatch.chdir(folder)
    words = ["build", "manifest.jsonl", "--images", "images", "--expert", "demo"]
    more = ["--out", "a b/store", "--workers", "0", "--shard-rows", "4", "--part", "2/2"]
    done = run(*words, *more).stdout.splitlines()
    finishing = json.loads(run("status", spaced / "store", "--json").stdout)["next"]
    assert finishing[0].startswith(f"medalign cache build {folder}/manifest.jsonl --images ")
    assert "--part" not in finishing[0]
    assert done[-2].endswith(f"or for all that is left: {finishing[0]}")
    assert done[-1] == "then       medalign cache seal 'a b/store'"
    monkeypatch.chdir(tmp_path.parent)
    for command in finishing:
        program, group, *rest = shlex.split(command)
        assert (program, group) == ("medalign", "cache")
        assert run(*rest).exit_code == 0
    assert json.loads(run("status", spaced / "store", "--json").stdout)["next"] == []


@pytest.mark.parametrize("joined", [False, True])
def test_a_copied_store_is_finished_where_it_lies(
    folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    copy = tmp_path / "a copy"
    shutil.copytree(store, copy)
    (copy / "_commit" / "1.json").unlink()
    origin = load_origin(store)
    assert origin is not None
    if joined:
        words = shlex.join(origin.command).replace(f"--out {store}", f"--out={store}")
        save_origin(copy, replace(origin, command=tuple(shlex.split(words))))
    monkeypatch.chdir(tmp_path)
    finishing = json.loads(run("status", "a copy", "--json").stdout)["next"]
    assert len(finishing) == 2
    refused = run("seal", "a copy")
    assert finishing[0] in str(refused.exception)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    monkeypatch.chdir(tmp_path.parent)
    assert run(*shlex.split(finishing[0])[2:]).exit_code == 0
    assert json.loads(run("status", copy, "--json").stdout)["complete"] == 3
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert f"{folder}/manifest.jsonl" in finishing[0]


def test_a_store_that_does_not_know_its_build_gives_a_general_command(store: Path) -> None:
    (store / "_commit" / "1.json").unlink()
    for origin in ("not JSON", "[]", '{"command": ["rm", "-rf", "/"]}', None):
        (store / "_commit" / "origin.json").unlink()
        if origin is not None:
            (store / "_commit" / "origin.json").write_text(origin)
        text = run("status", store).stdout
        assert (
            f"next     medalign cache build MANIFEST --images DIR --expert NAME --out {store}"
            in (text)
        )
        (store / "_commit" / "origin.json").touch()


def test_a_weights_file_is_remembered_by_its_absolute_path(
    folder: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_folder.parent)
    weights = "small-clip/open_clip_pytorch_model.bin"
    words = arguments(folder, "--expert", "small-clip", "--weights", weights, "--grid", "4x4")
    assert run(*words).exit_code == 0
    origin = load_origin(folder / "store")
    assert origin is not None
    assert (origin.expert, origin.weights) == (
        str(small_folder),
        str(small_folder.parent / weights),
    )
    assert str(small_folder.parent / weights) in origin.command


def test_parts_are_taken_from_the_option_or_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(*arguments(folder, "--part", "2/2"))
    assert "1 of 3 are there, 1 written by this run" in result.stdout
    assert "the other parts, or for all that is left: medalign cache build" in result.stdout
    for name, value in {"ID": "0", "COUNT": "2", "MIN": "0", "MAX": "1"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    result = run(*arguments(folder))
    assert "part 1/2, by the Slurm array" in result.stderr
    assert "3 of 3 are there, 2 written by this run" in result.stdout


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--expert", "unimed-l"), ArgumentError, "give --weights"),
        (("--part", "3/2"), ArgumentError, "part takes I/N"),
        (("--grid", "24"), ArgumentError, "written like 24x24"),
        (("--mode", "paper", "--geometry", "pad"), ArgumentError, "leave --geometry away"),
        (("--device", "abacus"), ArgumentError, "unknown device"),
    ],
)
def test_wrong_input_is_one_clear_error(
    folder: Path, more: tuple[str, ...], error: type[ValueError], message: str
) -> None:
    result = run(*arguments(folder, *more))
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert not (folder / "store").exists()


def test_on_error_fail_stops_at_the_image(folder: Path) -> None:
    (folder / "images" / "3.png").write_bytes(b"")
    result = run(*arguments(folder, "--on-error", "fail"))
    assert isinstance(result.exception, PixelsError)


@pytest.mark.parametrize("command", ["status", "seal", "verify", "info"])
def test_a_store_that_is_not_there_is_said(tmp_path: Path, command: str) -> None:
    result = run(command, tmp_path / "nowhere")
    assert isinstance(result.exception, ArgumentError)
    assert "nowhere" in str(result.exception)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, medalign.pipeline.commands.cache\n"
        "print([m for m in ('torch', 'zarr', 'numpy', 'PIL', 'open_clip') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# A real process, with worker processes, stopped in the middle


@pytest.fixture
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A build of many shards in its own process group; it has written at least one."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # as without `nohup`
        "from medalign.pipeline.commands.cache import cache; cache()"
    )
    words = arguments(folder, "--workers", "1", "--shard-rows", "1", "--batch-size", "1")
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not any((folder / "store" / "_commit").glob("[0-9]*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    yield process
    process.kill()
    process.communicate()


def finish(folder: Path) -> None:
    words = ("--shard-rows", "1", "--batch-size", "1")
    done = json.loads(run("status", folder / "store", "--json").stdout)["complete"]
    assert 1 <= done < IMAGES
    result = run(*arguments(folder, *words))
    assert result.exit_code == 0, result.output
    assert f"10 of 10 are there, {IMAGES - done} written by this run" in result.stdout
    assert run("seal", folder / "store", "--recompute", "0").exit_code == 0
    assert run("verify", folder / "store").exit_code == 0


def test_ctrl_c_loses_nothing_and_says_how_to_go_on(
    folder: Path, running: "subprocess.Popen[str]"
) -> None:
    os.killpg(running.pid, signal.SIGINT)  # a terminal sends it to the workers as well
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    told(folder, errors)
    finish(folder)


def told(folder: Path, errors: str) -> None:
    """Check that a stopped build said what is kept and how to go on, and nothing else."""
    done = json.loads(run("status", folder / "store", "--json").stdout)["complete"]
    store = folder / "store"
    *_, kept, command = errors.splitlines()
    assert kept == (
        f"medalign: stopped; {done} of 10 shards are written in {store} and stay; to continue:"
    )
    assert command.startswith(f"  medalign cache build {folder}/manifest.jsonl ")
    for word in ("Traceback", "leaked", "semaphore", "worker process died"):
        assert word not in errors


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, True)],
)
def test_sigterm_and_sighup_end_a_build_as_ctrl_c_does(
    folder: Path, running: "subprocess.Popen[str]", number: signal.Signals, whole_group: bool
) -> None:
    (os.killpg if whole_group else os.kill)(running.pid, number)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    told(folder, errors)
    finish(folder)


def test_a_build_stopped_before_anything_is_written_says_that(folder: Path) -> None:
    code = (
        "import os, signal\n"
        "import medalign.pipeline.build as build\n"
        "build.check_folders = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "from medalign.pipeline.commands.cache import cache; cache()"
    )
    words = [sys.executable, "-c", code, *arguments(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 130
    said, command = done.stderr.splitlines()
    store = folder / "store"
    assert said == f"medalign: stopped before anything was written to {store}; to begin again:"
    assert command.startswith("  medalign cache build ")


def test_a_signal_while_torch_is_imported_waits_for_the_import(folder: Path) -> None:
    code = (
        "import atexit, os, signal, sys\n"
        "class Signalling:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch.nn':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Signalling())\n"
        "atexit.register(lambda: print(hasattr(sys.modules.get('torch'), 'optim')))\n"
        "from medalign.pipeline.commands.cache import cache; cache()"
    )
    words = [sys.executable, "-c", code, *arguments(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "True\n"), done.stderr
    assert "stopped before anything was written" in done.stderr


def test_a_killed_build_is_finished_by_the_next_run(
    folder: Path, running: "subprocess.Popen[str]"
) -> None:
    running.kill()
    running.communicate()
    finish(folder)
