import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from medalign.cli import app
from medalign.pipeline.hygiene.finding import Check, first, worst
from medalign.pipeline.manifest import even, read_manifest
from medalign.runtime.arguments import ArgumentError
from medalign.trainer.preflight import machine_checks as machine
from medalign.trainer.preflight.data_check import kind_of
from medalign.trainer.preflight.preview import in_colour
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.students.spec import read_student

Dataset = Callable[..., tuple[Path, Path, Path]]


def doctor(*words: object) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `medalign doctor ... --json`."""
    done = CliRunner().invoke(app, ["doctor", *map(str, words), "--json"])
    assert done.exit_code in (0, 1), done.output
    return done.exit_code, json.loads(done.stdout)


def named(found: dict[str, Any], name: str) -> dict[str, Any]:
    """The one check of that name."""
    (check,) = [check for check in found["checks"] if check["name"] == name]
    return dict(check)


@pytest.fixture
def written(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe file from dotted keys."""

    def make(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe(**changes).to_yaml())
        return path

    return make


def test_with_no_arguments_it_looks_at_this_machine() -> None:
    code, found = doctor()
    assert code == 0
    names = [check["name"] for check in found["checks"]]
    assert names == ["versions", "devices", "memory", "disk", "shared memory"]
    assert f"torch {torch.__version__.partition('+')[0]}" in named(found, "versions")["text"]


def test_all_is_well_with_a_cache_and_a_student_that_fit(
    dataset: Dataset, students: Callable[..., Path], written: Callable[..., Path]
) -> None:
    manifest, images, cache = dataset()
    paths = ("--images", images, "--cache", cache, "--student", students())
    code, found = doctor(manifest, *paths, "--recipe", written())
    assert code == 0
    status = {check["name"]: check["status"] for check in found["checks"]}
    assert status.pop("certificate") == "warning"  # made without an expert
    assert status.pop("records") == "warning"  # CLOSED, and neither yes nor no
    assert set(status.values()) == {"ok"}
    assert {"agreement", "cache rows", "image bytes", "decoding", "lengths"} <= set(status)
    assert len(found["previews"]) == 3


def test_no_failure_hides_another(
    dataset: Dataset, students: Callable[..., Path], tmp_path: Path
) -> None:
    manifest, images, cache = dataset(grid="2x2", geometry="crop")
    (images / "0.png").write_bytes(b"not an image")
    (images / "1.png").unlink()
    with manifest.open("a") as file:
        file.write('{"id": 1}\nnonsense\n')
    student = tmp_path / "student"
    shutil.copytree(students(), student)
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("loss: {layer: 1}\nrun: {steps: 1}\nlora: {rnk: 3}\n")
    paths = ("--images", images, "--cache", cache, "--student", student, "--recipe", recipe)
    code, found = doctor(manifest, *paths)
    assert code == 1
    failed = [check["name"] for check in found["checks"] if check["status"] == "failed"]
    assert failed == [
        "recipe", "weights", "agreement", "manifest", "image files", "decoding", "image bytes",
    ]  # fmt: skip
    assert f"{recipe}:3: unknown key lora.rnk" in named(found, "recipe")["text"]
    agreement = named(found, "agreement")["details"]
    assert any("--grid 4x4" in text for text in agreement)
    assert any("--geometry pad" in text for text in agreement)
    broken = named(found, "manifest")
    assert broken["text"].endswith("problems, 8 records are in order")
    assert any(line.startswith("line 9: ") for line in broken["details"])
    assert any(line.startswith("line 10: ") for line in broken["details"])
    assert named(found, "image files")["details"] == ["1.png"]
    assert named(found, "decoding")["text"] == "1 of 5 cannot be decoded"
    assert named(found, "image bytes")["details"] == ["0.png"]
    assert named(found, "lengths")["status"] == "ok"  # the records that are in order


def test_ten_broken_lines_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    good = {"id": "a", "conversations": [{"from": "human", "value": "q"}]}
    manifest.write_text(json.dumps(good) + "\n" + "{}x\n" * 25)
    code, found = doctor(manifest)
    check = named(found, "manifest")
    assert (code, check["text"]) == (1, f"{manifest}: 25 problems, 1 records are in order")
    assert len(check["details"]) == 11
    assert check["details"][-1] == "and 15 more"


def test_images_that_the_cache_lacks_are_counted_with_their_conversations(
    dataset: Dataset, tmp_path: Path
) -> None:
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    extra = [{"id": f"x{k}", "image": "new.png", "conversations": turns} for k in range(2)]
    manifest, images, cache = dataset(extra=extra, failures={0: "cannot be decoded"})
    shutil.copy(images / "1.png", images / "new.png")
    _, found = doctor(manifest, "--images", images, "--cache", cache)
    check = named(found, "cache rows")
    assert check["status"] == "warning"
    # 0.png failed in r0 and r6 of 8 records over 6 images.
    assert check["text"] == "2 of 7 images have no row, in 4 conversations of 10"
    assert check["details"] == ["0.png: cannot be decoded", "new.png: not in the cache"]
    elsewhere = tmp_path / "other.jsonl"
    elsewhere.write_text(json.dumps(extra[0]) + "\n")
    code, found = doctor(elsewhere, "--cache", cache)
    assert (code, named(found, "cache rows")["status"]) == (1, "failed")


def test_an_unsealed_cache_is_a_failure(dataset: Dataset) -> None:
    manifest, images, cache = dataset(sealed=False)
    code, found = doctor(manifest, "--images", images, "--cache", cache)
    assert code == 1
    assert "medalign cache seal" in named(found, "cache")["text"]


def test_a_missing_folder_is_wrong_input(dataset: Dataset, tmp_path: Path) -> None:
    manifest, _, _ = dataset(sealed=False)
    words = ["doctor", str(manifest), "--images", str(tmp_path / "nowhere")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ArgumentError)
    assert "nowhere: no such folder" in str(done.exception)


def test_deep_images_and_dicom_are_noted(tmp_path: Path) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray((deep // 256).astype(np.uint8)).save(tmp_path / "plain.png")
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    manifest = tmp_path / "m.jsonl"
    records = [
        {"id": name, "image": f"{name}.png", "conversations": turns} for name in ("deep", "plain")
    ]
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    _, found = doctor(manifest, "--images", tmp_path)
    text = "2 of 2 images decoded, 1 of more than 8 bits (stretched)"
    assert named(found, "decoding")["text"] == text
    (tmp_path / "scan").write_bytes(b"\0" * 128 + b"DICM")
    assert kind_of(tmp_path / "scan") == "DICOM"


def test_a_sample_is_evenly_spread_and_all_is_all(dataset: Dataset) -> None:
    names = [str(k) for k in range(100)]
    assert even(names, 4) == ["0", "33", "66", "99"]
    assert even(names, 1) == ["0"]
    assert even(names, None) == even(names, 100) == names
    manifest, images, cache = dataset(images=6, records=6)
    (images / "2.png").write_bytes((images / "3.png").read_bytes())
    given = (manifest, "--images", images, "--cache", cache)
    code, found = doctor(*given, "--sample", 2)
    assert (code, named(found, "decoding")["text"]) == (0, "2 of 6 images decoded")
    assert named(found, "image bytes")["text"] == "2 images as the cache saw them"
    code, found = doctor(*given, "--all")
    assert (code, named(found, "image bytes")["details"]) == (1, ["2.png"])


@pytest.mark.parametrize("what", ["index", "shard", "tensor", "all", "short"])
def test_weights_are_compared_with_index_and_config_without_being_loaded(
    what: str, students: Callable[..., Path], tmp_path: Path
) -> None:
    student = tmp_path / "student"
    shutil.copytree(students(), student)
    index = student / "model.safetensors.index.json"
    listing = {"lm_head.weight": "model.safetensors"}
    if what == "index":
        index.write_text("{}")
    elif what == "shard":
        index.write_text(json.dumps({"weight_map": listing | {"b": "part-2.safetensors"}}))
    elif what == "tensor":
        index.write_text(json.dumps({"weight_map": listing | {"b": "model.safetensors"}}))
    elif what == "all":
        (student / "model.safetensors").unlink()
    else:
        config = json.loads((student / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] += 1
        (student / "config.json").write_text(json.dumps(config))
    code, found = doctor("--student", student)
    check = named(found, "weights")
    assert (code, check["status"]) == (1, "failed")
    wanted = {
        "index": "weight_map",
        "shard": "1 of them missing: part-2.safetensors",
        "tensor": "model.safetensors lacks b, ",
        "all": "holds no weights",
        "short": "config.json needs",
    }
    assert wanted[what] in " ".join([check["text"], *check["details"]])


def test_lengths_name_what_max_length_cuts_and_what_cannot_be_used(
    dataset: Dataset, students: Callable[..., Path], written: Callable[..., Path]
) -> None:
    long = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "yes " * 500}]
    huge = [{"from": "human", "value": "<image>\n" + "why " * 500}, {"from": "gpt", "value": "a"}]
    extra = [
        {"id": "long", "image": "0.png", "conversations": long},
        {"id": "huge", "image": "0.png", "conversations": huge},
    ]
    manifest, *_ = dataset(extra=extra)
    recipe = written(**{"data.max_length": 300})
    _, found = doctor(manifest, "--student", students(), "--recipe", recipe)
    check = named(found, "lengths")
    assert check["status"] == "warning"
    assert "data.max_length 300 cuts 1; 1 do not fit at all, 0 unusable" in check["text"]
    assert check["advice"] == "raise data.max_length: image tokens are never cut"
    bars = check["details"][:-1]
    assert sum(int(bar.replace("<- data.max_length", "").split()[-1]) for bar in bars) == 9
    assert sum("<- data.max_length" in bar for bar in bars) == 1
    assert check["details"][-1].startswith("'huge': record 'huge' needs ")


def test_the_preview_shows_what_is_learnt_and_where_images_are(
    dataset: Dataset, students: Callable[..., Path]
) -> None:
    manifest, *_ = dataset(images=1, records=1)
    _, found = doctor(manifest, "--student", students())
    (preview,) = found["previews"]
    assert preview["id"] == "r0"
    kinds = [piece["kind"] for piece in preview["pieces"]]
    assert kinds == ["prompt", "image", "prompt", "learnt", "end"]
    texts = [piece["text"] for piece in preview["pieces"]]
    assert texts[1] == "<image x16>"
    assert texts[2:] == ["\nIs this an X-ray? ASSISTANT:", " yes", "</s>"]
    done = CliRunner().invoke(app, ["doctor", str(manifest), "--student", str(students())])
    assert "r0: A chat" in done.stdout
    assert "<image x16>⏎Is this an X-ray? ASSISTANT: yes</s>" in done.stdout


def test_the_preview_is_coloured_and_says_what_was_cut(
    dataset: Dataset, students: Callable[..., Path]
) -> None:
    manifest, *_ = dataset(records=3)
    record = read_manifest(manifest)[2]  # "no fracture is seen"
    encoder = read_student(students()).encoder
    whole = encoder.training(record, 10**6)
    line = in_colour("r2", encoder.training(record, len(whole.input_ids) - 2), encoder)
    assert line.plain.endswith(" [2 tokens cut]")
    styles = {line.plain[span.start : span.end]: span.style for span in line.spans}
    assert styles["<image x16>"] == "cyan"
    assert next(style for text, style in styles.items() if text.startswith(" no")) == "bold green"


def test_packages_below_medaligns_bounds_are_named_with_both_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def old(package: str) -> str | None:
        return {"peft": "0.17.0", "zarr": None}.get(package, "9999")

    bounds = ["peft>=0.18.1", "zarr>=3.1.6,<4", "torch>=2.11", 's3fs>=2; extra == "s3"']
    monkeypatch.setattr(machine, "installed", old)
    monkeypatch.setattr(machine, "requires", lambda _: bounds)
    check = machine.versions()
    assert check.status == "failed"
    assert check.text == (
        "peft 0.17.0, medalign needs >=0.18.1; zarr is not installed, medalign needs <4,>=3.1.6"
    )


def test_little_disk_and_little_shared_memory_are_warnings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "free_disk_bytes", lambda _: 9_000_000_000)
    check = machine.disk("runs", tmp_path / "a" / "b")
    assert (check.status, check.text) == ("warning", f"9.0 GB free for runs in {tmp_path}")
    monkeypatch.setattr(machine, "shared_bytes", lambda: 64_000_000)
    assert machine.shared_memory(2).status == "warning"
    assert machine.shared_memory(0).status == "ok"


def test_an_attention_kernel_that_is_not_installed_fails(
    written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda _: None)
    recipe = written(**{"student.attention": "flash_attention_2"})
    code, found = doctor("--recipe", recipe)
    assert code == 1
    assert "flash-attn is not installed" in named(found, "attention")["text"]


def test_what_a_check_did_not_foresee_is_that_checks_failure(
    monkeypatch: pytest.MonkeyPatch, dataset: Dataset
) -> None:
    def broken() -> Check:
        raise RuntimeError("the driver\nis gone")

    monkeypatch.setattr(machine, "devices", broken)
    manifest, *_ = dataset()
    code, found = doctor(manifest)
    assert code == 1
    assert named(found, "devices")["text"] == "RuntimeError: the driver is gone"
    assert named(found, "memory")["status"] == "ok"
    assert named(found, "manifest")["status"] == "ok"


def test_paths_of_the_recipe_are_used_where_the_command_line_names_none(
    dataset: Dataset, students: Callable[..., Path], written: Callable[..., Path]
) -> None:
    manifest, images, _ = dataset()
    paths = {"data.manifest": str(manifest), "data.images": str(images)}
    _, found = doctor("--recipe", written(**paths, **{"student.path": str(students())}))
    names = {check["name"] for check in found["checks"]}
    assert {"manifest", "image files", "student", "lengths"} <= names


@pytest.mark.parametrize(
    ("batch", "status"), [(4, "ok"), ("auto", "ok"), (32, "warning"), (30, "failed")]
)
def test_a_deepspeed_file_may_be_written_for_more_ranks_than_one(
    batch: int | str, status: str, written: Callable[..., Path], tmp_path: Path
) -> None:
    config = tmp_path / "zero.json"
    config.write_text(json.dumps({"train_batch_size": batch, "zero_optimization": {"stage": 2}}))
    code, found = doctor("--recipe", written(**{"deepspeed.config": str(config)}))
    check = named(found, "recipe")
    assert (code, check["status"]) == (int(status == "failed"), status)
    if status == "warning":
        assert "is that of 8 ranks" in check["text"]
        assert check["advice"].startswith("start 8 ranks")


@pytest.mark.parametrize(
    ("per_step", "batch", "wanted"),
    [(32, 32, ""), (32, 30, "train_batch_size"), (5, "auto", "no multiple of data.batch_size 2")],
)
def test_a_step_of_a_fixed_size_fits_any_number_of_ranks(
    per_step: int, batch: int | str, wanted: str, written: Callable[..., Path], tmp_path: Path
) -> None:
    config = tmp_path / "zero.json"
    config.write_text(json.dumps({"train_batch_size": batch, "zero_optimization": {"stage": 2}}))
    step = {"data.per_step": per_step, "data.accumulation": None}
    code, found = doctor("--recipe", written(**{"deepspeed.config": str(config)}, **step))
    check = named(found, "recipe")
    assert (code, check["status"]) == ((1, "failed") if wanted else (0, "ok"))
    assert wanted in check["text"]


def test_held_out_manifest_images_and_rows_of_the_recipe_are_looked_at(
    dataset: Dataset, written: Callable[..., Path], tmp_path: Path
) -> None:
    manifest, images, cache = dataset()
    recipe = written(**{"validation.manifest": str(manifest)})
    given = (manifest, "--images", images, "--cache", cache, "--recipe", recipe)
    code, found = doctor(*given)
    names = ("held-out manifest", "held-out rows", "held-out images")
    assert (code, [named(found, name)["status"] for name in names]) == (0, ["ok"] * 3)

    other = json.loads(manifest.read_text().splitlines()[0]) | {"image": "new.png"}
    (tmp_path / "held.jsonl").write_text(json.dumps(other) + "\n")
    written(**{"validation.manifest": str(tmp_path / "held.jsonl")})
    code, found = doctor(*given)
    assert (code, [named(found, name)["status"] for name in names]) == (1, ["ok", *["failed"] * 2])

    nowhere = {"validation.manifest": str(tmp_path / "no.jsonl")}
    written(**nowhere, **{"validation.images": str(tmp_path / "no")})
    code, found = doctor(*given)
    assert code == 1
    assert named(found, "held-out manifest")["status"] == "failed"
    assert named(found, "held-out images")["text"].endswith("no is no folder")


def test_the_demo_recipe_is_looked_at_with_its_own_student() -> None:
    code, found = doctor("--recipe", "demo")
    assert code == 0
    assert "24x24 visual tokens" in named(found, "student")["text"]


def test_wrong_arguments_are_exit_code_two() -> None:
    assert CliRunner().invoke(app, ["doctor", "--nonsense"]).exit_code == 2


def test_details_are_shown_up_to_ten_and_the_worst_check_decides() -> None:
    assert first(["a"] * 10) == ("a",) * 10
    assert first(["a"] * 11) == (*("a",) * 10, "and 1 more")
    assert first(["a"] * 3, total=7) == ("a", "a", "a", "and 4 more")
    checks = [Check("a", "ok", ""), Check("b", "warning", ""), Check("c", "failed", "")]
    assert [worst(checks[:n]) for n in (1, 2, 3)] == ["ok", "warning", "failed"]
