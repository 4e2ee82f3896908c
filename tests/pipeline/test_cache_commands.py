import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from medalign.pipeline.build import BuildError
from medalign.pipeline.commands import cache
from medalign.pipeline.experts import ExpertError
from medalign.pipeline.parts import PartError
from medalign.pipeline.pixels import PixelsError
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError

IMAGES = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a manifest, `images/` with ten small pictures, and one text-only record."""
    (tmp_path / "images").mkdir()
    draw = np.random.default_rng(1)
    lines = []
    for number in range(IMAGES):
        pixels = draw.integers(0, 256, size=(40, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        lines.append(record(number, f"{number}.png"))
    lines.append(record(IMAGES, None))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path


def record(number: int, image: str | None) -> str:
    turns = [
        {"from": "human", "value": "<image>\nWhat?" if image else "What?"},
        {"from": "gpt", "value": "That."},
    ]
    fields = {"id": number, "conversations": turns}
    return json.dumps({**fields, "image": image} if image else fields)


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
    assert run("seal", store).exit_code == 0
    assert "nothing; the cache is sealed" in run(*arguments(folder)).stdout


def test_unreadable_images_are_listed_and_exit_1(folder: Path) -> None:
    (folder / "images" / "3.png").write_bytes(b"")
    (folder / "images" / "4.png").write_bytes(b"nothing")
    result = run(*arguments(folder))
    assert result.exit_code == 1
    assert "2 images without a row" in result.stdout
    assert "3.png: is empty (0 bytes)" in result.stdout
    assert "4.png: is not an image" in result.stdout
    failures = json.loads(run("status", folder / "store", "--json").stdout)["failures"]
    assert [path for path, _ in failures] == ["3.png", "4.png"]


def test_status_seal_info_and_verify_tell_of_the_cache(store: Path) -> None:
    status = run("status", store)
    assert (status.exit_code, status.stdout.splitlines()[1].split()) == (0, ["state", "building"])
    assert json.loads(run("status", store, "--json").stdout)["complete"] == 3
    assert f"{store} sealed" in run("seal", store).stdout
    assert f"{store} was sealed before" in run("seal", store).stdout
    info = json.loads(run("info", store, "--json").stdout)
    assert (info["state"], info["rows"], info["card"]["geometry"]) == ("sealed", 10, "pad")
    text = run("info", store).stdout
    assert info["fingerprint"] in text
    assert "demo (demo-ViT-14-336-quickgelu)" in text
    verify = run("verify", store)
    assert (verify.exit_code, verify.stdout) == (0, f"{store}: all as it was written\n")
    assert json.loads(run("verify", store, "--json").stdout) == []


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_verify_names_damage_exits_1_and_can_mend(folder: Path, store: Path) -> None:
    run("seal", store)
    sound = {path: TeacherCache.open(store)[path].features for path in ("0.png", "5.png")}
    damaged = max((store / "features").rglob("*"), key=lambda path: path.stat().st_size)
    flip_a_bit(damaged)
    result = run("verify", store)
    assert result.exit_code == 1
    assert result.stdout.startswith(str(damaged.relative_to(store)))
    assert json.loads(run("verify", store, "--json").stdout)[0]["where"] in str(damaged)
    assert run("verify", store, "--mend").exit_code == 1
    assert json.loads(run("status", store, "--json").stdout)["state"] == "building"
    rebuilt = run(*arguments(folder))
    assert "1 written by this run" in rebuilt.stdout
    assert run("seal", store).exit_code == run("verify", store).exit_code == 0
    for path, features in sound.items():
        np.testing.assert_array_equal(TeacherCache.open(store)[path].features, features)


def test_parts_are_taken_from_the_option_or_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(*arguments(folder, "--part", "2/2"))
    assert "1 of 3 are there, 1 written by this run" in result.stdout
    assert "the other parts, then: medalign cache seal" in result.stdout
    for name, value in {"ID": "0", "COUNT": "2", "MIN": "0", "MAX": "1"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    result = run(*arguments(folder))
    assert "part 1/2, by the Slurm array" in result.stderr
    assert "3 of 3 are there, 2 written by this run" in result.stdout


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--expert", "unimed-l"), ExpertError, "give --weights"),
        (("--part", "3/2"), PartError, "part takes I/N"),
        (("--grid", "24"), TeacherCacheError, "written like 24x24"),
        (("--mode", "paper", "--geometry", "pad"), BuildError, "leave --geometry away"),
        (("--device", "abacus"), ExpertError, "not one that torch knows"),
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
    assert isinstance(result.exception, TeacherCacheError)
    assert "nowhere" in str(result.exception)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, medalign.pipeline.commands\n"
        "print([m for m in ('torch', 'zarr', 'numpy', 'PIL', 'open_clip') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# A real process, with worker processes, stopped in the middle


@pytest.fixture
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A build of many shards in its own process group; it has written at least one."""
    code = "from medalign.pipeline.commands import cache; cache()"
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
    assert run("seal", folder / "store").exit_code == 0
    assert run("verify", folder / "store").exit_code == 0


def test_ctrl_c_loses_nothing_and_says_how_to_go_on(
    folder: Path, running: "subprocess.Popen[str]"
) -> None:
    os.killpg(running.pid, signal.SIGINT)  # a terminal sends it to the workers as well
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert errors.splitlines()[-1].startswith("stopped; what is written in")
    assert "Traceback" not in errors
    finish(folder)


def test_a_killed_build_is_finished_by_the_next_run(
    folder: Path, running: "subprocess.Popen[str]"
) -> None:
    running.kill()
    running.communicate()
    finish(folder)
