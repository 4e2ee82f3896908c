"""The whole job through the command line, as a user runs it, on tiny models."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

RECIPE = """\
loss: {layer: 2, alpha: 1.0, beta: 0.1}
lora: {rank: 4, dropout: 0.0}
optim: {lr: 5.0e-3, projector_lr: 5.0e-4}
data: {batch_size: 2, accumulation: 2, workers: 1}
deepspeed: {stage: 2}
run: {steps: 6, save_every: 2}
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, of which one is broken, a manifest, a recipe and a 4x4 student."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    lines = []
    for k in range(12):
        name = f"{k}.png"
        pixels = rng.integers(0, 256, (50 + 10 * (k % 3), 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        turns = [
            {"from": "human", "value": "<image>\nDoes this chest X-ray show pneumonia?"},
            {"from": "gpt", "value": ("yes", "no")[k % 2]},
        ]
        lines.append(
            {"id": f"q{k}", "image": name, "answer_type": "CLOSED", "conversations": turns}
        )
    (folder / "images" / "11.png").write_bytes(b"not an image")
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
    (folder / "r.yaml").write_text(RECIPE)
    make_student(folder / "student", DEMO_TEXTS, TinyStudent(image_size=56))
    return folder


@pytest.fixture(scope="module")
def cache(job: Path, medalign: Callable[..., str]) -> Path:
    store = job / "cache"
    words = ("cache", "build", job / "m.jsonl", "--images", job / "images", "--expert", "demo")
    shape = ("--grid", "4x4", "--shard-rows", "4", "--workers", "0", "--out", store)
    said = medalign(*words, *shape, code=1)  # one image is broken
    assert "11.png" in said
    medalign("cache", "seal", store)
    medalign("cache", "verify", store)
    return store


def train_words(job: Path, cache: Path, out: Path) -> list[str | Path]:
    paths: list[str | Path] = [
        "--manifest",
        job / "m.jsonl",
        "--images",
        job / "images",
        "--student",
        job / "student",
    ]
    return ["train", job / "r.yaml", "--cache", cache, *paths, "--out", out]


@pytest.fixture(scope="module")
def finished(job: Path, cache: Path, medalign: Callable[..., str]) -> Path:
    out = job / "run"
    said = medalign(*train_words(job, cache, out))
    assert str(out / "adapter") in said
    assert "11 rows recomputed" in said
    return out


def test_a_run_remembers_its_cache_and_the_certificate(
    cache: Path, finished: Path, medalign: Callable[..., str]
) -> None:
    known = json.loads((finished / "environment.json").read_text())["cache"]
    info = json.loads(medalign("cache", "info", cache, "--json"))
    for key in ("store", "rows", "content_hash", "certificate"):
        assert known[key] == info[key]
    assert known["certificate"]["dtype"] == "float32"


def test_training_from_similarities_gives_the_loss_curve_of_training_from_features(
    job: Path, cache: Path, finished: Path, medalign: Callable[..., str]
) -> None:
    error, store = 1e-3, job / "gram"
    words = ("cache", "build", job / "m.jsonl", "--images", job / "images", "--expert", "demo")
    shape = ("--grid", "4x4", "--shard-rows", "4", "--workers", "1", "--out", store)
    said = medalign(*words, *shape, "--max-gram-error", str(error), code=1)
    assert "Gram error  RMS" in said
    medalign("cache", "seal", store)
    medalign("cache", "verify", store, "--recompute", "3")
    info = json.loads(medalign("cache", "info", store, "--json"))
    assert info["card"]["codec"] == "gram"
    assert 0 < info["gram_error"]["largest_rms"] <= error
    medalign(*train_words(job, store, job / "run-gram"))
    coded, plain = (
        [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (job / "run-gram", finished)
    )
    for ours, theirs in zip(coded, plain, strict=True):
        # |mean((d + e)^2) - mean(d^2)| <= 2 sqrt(mean(d^2)) rms(e) + rms(e)^2
        allowed = 2 * theirs["vis"] ** 0.5 * error + error**2
        assert abs(ours["vis"] - theirs["vis"]) <= allowed
        assert ours["att"] == pytest.approx(theirs["att"], rel=0.02)
        assert ours["lm"] == pytest.approx(theirs["lm"], rel=0.02)
    assert any(ours["vis"] != theirs["vis"] for ours, theirs in zip(coded, plain, strict=True))
    assert len(list(store.glob("codes/c.*"))) == len(list(cache.glob("features/c.*")))


def test_a_run_folder_holds_everything_the_contract_names(finished: Path) -> None:
    lines = [json.loads(x) for x in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lm", "vis", "att", "grad_norm", "lr", "data_wait", "peak_bytes"} <= set(
        lines[0]
    )
    for name in ("recipe.yaml", "environment.json", "adapter/medalign.json", "adapter/README.md"):
        assert (finished / name).is_file()
    assert (finished / "checkpoints" / "last").resolve().name == "step-6"
    assert sorted(p.name for p in (finished / "checkpoints").glob("step-*")) == ["step-4", "step-6"]
    keys = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert any("layers.2.visual_rotation.weight" in key for key in keys)
    assert any("multi_modal_projector" in key for key in keys)


def test_a_finished_run_is_not_trained_again(
    job: Path, cache: Path, finished: Path, medalign: Callable[..., str]
) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    medalign(*train_words(job, cache, finished))
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    job: Path, cache: Path, finished: Path, medalign: Callable[..., str]
) -> None:
    out = job / "killed"
    words = [sys.executable, "-m", "medalign", *map(str, train_words(job, cache, out))]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / "step-2").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    medalign(*train_words(job, cache, out))
    wanted = load_file(finished / "adapter" / "adapter_model.safetensors")
    got = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(np.array_equal(got[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("number", "option", "hint"),
    [
        (signal.SIGINT, "--no-resume", "to continue, run the same command without --no-resume"),
        (signal.SIGTERM, "--resume", "to continue, run the same command"),
    ],
)
def test_a_stopped_run_saves_and_says_how_to_go_on(
    job: Path, cache: Path, number: signal.Signals, option: str, hint: str
) -> None:
    out = job / f"stopped-{number.name}"
    long = ("--set", "run.steps=500", "--set", "run.save_every=499", option)
    words = [*train_words(job, cache, out), *long]
    process = subprocess.Popen(
        [sys.executable, "-m", "medalign", *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert hint in said
    assert "Traceback" not in said
    assert len(list((out / "checkpoints").glob("step-*"))) == 1


def test_a_run_whose_terminal_is_closed_saves(job: Path, cache: Path) -> None:
    out = job / "hung-up"
    long = ("--set", "run.steps=500", "--set", "run.save_every=499")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(
            sys.executable,
            [sys.executable, "-m", "medalign", *map(str, train_words(job, cache, out)), *long],
        )
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 10_000)
    os.close(terminal)
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert os.waitstatus_to_exitcode(ended[1]) == 130
    assert len(list((out / "checkpoints").glob("step-*"))) == 1


@pytest.mark.parametrize("decoder", ["greedy", "beam", "nucleus"])
def test_answers_are_generated_and_scored(
    job: Path, finished: Path, decoder: str, tmp_path: Path, medalign: Callable[..., str]
) -> None:
    out = tmp_path / "p.jsonl"
    words: list[str | Path] = [
        "eval",
        "generate",
        finished,
        job / "test.jsonl",
        "--images",
        job / "images",
    ]
    options: list[str | Path] = ["--decoder", decoder, "--max-new-tokens", "4", "--out", out]
    assert "5 new, 0 from before" in medalign(*words, *options)
    answers = out.read_bytes()
    assert "0 new, 5 from before" in medalign(*words, *options)
    assert out.read_bytes() == answers
    scores = tmp_path / "s.json"
    medalign("eval", "score", out, job / "test.jsonl", "--task", "vqa", "--out", scores)
    assert json.loads(scores.read_text())["counts"]["records"] == 5


def test_a_student_without_an_adapter_answers_too(
    job: Path, tmp_path: Path, medalign: Callable[..., str]
) -> None:
    words: list[str | Path] = [
        "eval",
        "generate",
        job / "student",
        job / "test.jsonl",
        "--images",
        job / "images",
    ]
    medalign(*words, "--max-new-tokens", "2", "--out", tmp_path / "p.jsonl")


BAD = {
    "no manifest": (["--manifest", "nowhere.jsonl"], "nowhere.jsonl"),
    "no images": (["--images", "nowhere"], "--images nowhere: no such folder"),
    "no student": (["--student", "nowhere"], "--student nowhere: no such folder"),
    "no cache": (["--cache", "nowhere"], "nowhere"),
    "misspelt key": (["--set", "loss.alhpa=1"], "unknown key loss.alhpa"),
    "layer out of range": (["--set", "loss.layer=4"], "has layers 0 to 3"),
    "wrong expert": (["--set", "expert.name=unimed-l"], "wants expert.name 'unimed-l', the cache"),
    "image missing": (["--set", "data.on_missing=fail"], "11.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_to_train_is_one_line_and_exit_2(
    job: Path, cache: Path, tmp_path: Path, case: str, medalign: Callable[..., str]
) -> None:
    extra, wanted = BAD[case]
    said = medalign(*train_words(job, cache, tmp_path / "run"), *extra, code=2)
    assert wanted in said
    assert len(said.strip().splitlines()) == 1, said
    assert not (tmp_path / "run").exists()


def test_another_recipe_over_a_run_is_refused_naming_both_sides(
    job: Path, cache: Path, finished: Path, medalign: Callable[..., str]
) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    said = medalign(*train_words(job, cache, finished), "--set", "optim.lr=0.1", code=2)
    assert "optim.lr was 0.005, is 0.1" in said
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_starting_over_keeps_the_earlier_run(
    job: Path, cache: Path, tmp_path: Path, medalign: Callable[..., str]
) -> None:
    out = tmp_path / "run"
    short = ["--set", "run.steps=1"]
    medalign(*train_words(job, cache, out), *short)
    medalign(*train_words(job, cache, out), *short, "--no-resume")
    assert (tmp_path / "run.old-1" / "adapter").is_dir()
    assert (out / "adapter").is_dir()


def test_a_folder_of_something_else_is_not_written_into(
    job: Path, cache: Path, tmp_path: Path, medalign: Callable[..., str]
) -> None:
    (tmp_path / "thesis.txt").write_text("chapter one")
    assert "something else than a run" in medalign(*train_words(job, cache, tmp_path), code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_cache_that_is_still_building_is_refused(
    job: Path, tmp_path: Path, medalign: Callable[..., str]
) -> None:
    store = tmp_path / "cache"
    words = ("cache", "build", job / "test.jsonl", "--images", job / "images", "--expert", "demo")
    medalign(*words, "--grid", "4x4", "--workers", "0", "--out", store)
    said = medalign(*train_words(job, store, tmp_path / "run"), code=2)
    assert "medalign cache seal" in said


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--grid", "5x5"], "has 5x5 patches, the student"),
        (["--grid", "4x4", "--geometry", "crop"], "geometry 'crop', the student"),
    ],
)
def test_a_cache_of_another_shape_is_refused_naming_both_sides(
    job: Path, tmp_path: Path, options: list[str], wanted: str, medalign: Callable[..., str]
) -> None:
    store = tmp_path / "cache"
    words = ("cache", "build", job / "test.jsonl", "--images", job / "images", "--expert", "demo")
    medalign(*words, *options, "--workers", "0", "--out", store)
    medalign("cache", "seal", store)
    assert wanted in medalign(*train_words(job, store, tmp_path / "run"), code=2)


def test_an_image_that_changed_since_the_cache_was_built_is_refused(
    job: Path, cache: Path, tmp_path: Path, medalign: Callable[..., str]
) -> None:
    moved = tmp_path / "images"
    moved.mkdir()
    for path in (job / "images").iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    (moved / "3.png").write_bytes((moved / "4.png").read_bytes())
    said = medalign(*train_words(job, cache, tmp_path / "run"), "--images", moved, code=2)
    assert "3.png" in said
    assert "sha256" in said


def test_two_ranks_give_the_numbers_of_one(
    job: Path, cache: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [str(word) for word in train_words(job, cache, out)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    result = subprocess.run(
        [sys.executable, *launch, "medalign", *words, "--set", "data.batch_size=1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert json.loads((out / "environment.json").read_text())["ranks"] == 2
    assert result.stdout.count("adapter ") == 1  # one rank speaks
    one, two = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (finished, out)
    )
    assert len(two) == 6
    for a, b in zip(one, two, strict=True):
        for term in ("loss", "lm", "vis", "att", "grad_norm", "lr"):
            assert b[term] == pytest.approx(a[term], rel=1e-3), (a["step"], term)


def test_an_image_lost_since_the_cache_was_built_is_told_and_exits_1(
    job: Path, cache: Path, tmp_path: Path, medalign: Callable[..., str]
) -> None:
    fewer = tmp_path / "images"
    fewer.mkdir()
    for path in (job / "images").iterdir():
        if path.name != "3.png":
            (fewer / path.name).write_bytes(path.read_bytes())
    said = medalign(*train_words(job, cache, tmp_path / "run"), "--images", fewer, code=1)
    assert "could not be read and was not learnt" in said
    assert "3.png" in said
    assert (tmp_path / "run" / "adapter").is_dir()


def test_a_changed_image_stops_both_ranks_with_one_line(
    job: Path, cache: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "images"
    moved.mkdir()
    for path in (job / "images").iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    (moved / "3.png").write_bytes((moved / "4.png").read_bytes())
    words = [str(word) for word in train_words(job, cache, tmp_path / "run")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    result = subprocess.run(
        [sys.executable, *launch, "medalign", *words, "--images", str(moved)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode != 0
    assert "restore the image" in result.stderr
