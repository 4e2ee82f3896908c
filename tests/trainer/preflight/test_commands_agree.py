"""What one command names, the others that look at the same thing name too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medalign.cli import app
from medalign.pipeline.hygiene.manifest_check import KINDS
from medalign.pipeline.manifest import ManifestError
from medalign.trainer.data.dataset import MissingTeacherError
from medalign.trainer.prepared import prepare, with_paths
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.students.spec import StudentError

Dataset = Callable[..., tuple[Path, Path, Path]]
Checks = dict[str, dict[str, Any]]


def run(*words: object) -> tuple[int, Any]:
    """Exit code and JSON of a command."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code in (0, 1), done.output
    return done.exit_code, json.loads(done.stdout)


def checks(*words: object) -> tuple[int, Checks]:
    code, report = run(*words)
    return code, {check["name"]: check for check in report["checks"]}


def talk(answer: str | None = "yes", question: str = "q?") -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}]
    return {"conversations": turns + [{"from": "gpt", "value": answer}] * (answer is not None)}


FAULTS = {  # a record that is wrong in one way, beside one that is not
    "manifest": {"image": "../a.png"},
    "image-missing": {"image": "nowhere.png"},
    "image-outside": {"image": "out.png"},
    "image-unreadable": {"image": "cut.png"},
    "image-tiny": {"image": "tiny.png"},
    "image-constant": {"image": "grey.png"},
    "mask-missing": {"mask": "nowhere.png"},
    "mask-unreadable": {"mask": "cut.png"},
    "mask-size": {"mask": "tiny.png"},
    "no-answer": talk(None),
    "empty-answer": talk(" "),
    "options-malformed": {"options": ["yes"]},
    "options-repeated": {"options": ["yes", "Yes", "no"], **talk("yes", "yes, Yes or no?")},
    "answer-no-option": {"options": ["yes", "no"], **talk("CT", "yes or no?")},
    "options-unseen": {"options": ["yes", "no"]},
    "closed-odd": talk("left"),
    "no-answer-type": {"answer_type": None},
    "contradiction": talk("no", "is it?"),
    "duplicate": talk("yes", "is it?"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    Image.fromarray(noise[:20]).save(folder / "tiny.png")
    Image.fromarray(np.full((40, 50), 9, np.uint8)).save(folder / "grey.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "out.png").symlink_to(folder.parent / "elsewhere.png")
    return folder


def test_the_table_has_every_kind_of_fault() -> None:
    assert FAULTS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", FAULTS)
def test_doctor_names_what_data_check_names(kind: str, images: Path, tmp_path: Path) -> None:
    sound = {"id": "a", "image": "a.png", "answer_type": "CLOSED", **talk("yes", "is it?")}
    manifest = tmp_path / "manifest.jsonl"
    faulty = {**sound, "id": "b", **talk("yes", "other?"), **FAULTS[kind]}
    manifest.write_text(f"{json.dumps(sound)}\n{json.dumps(faulty)}\n")
    code, report = run("data", "check", manifest, "--images", images)
    assert kind in report["kinds"]
    doctors_code, found = checks("doctor", manifest, "--images", images)
    assert doctors_code == code
    for name, listed in report["kinds"].items():
        check = found[KINDS[name].part]
        assert check["status"] == {"error": "failed", "warning": "warning"}[listed["severity"]]
        for finding in listed["findings"]:
            assert any(detail.endswith(finding["text"]) for detail in check["details"])
    parts = {KINDS[name].part for name in report["kinds"]}
    looked_at = {kind.part for kind in KINDS.values()} & found.keys()
    assert all(found[part]["status"] == "ok" for part in looked_at - parts)


def test_a_file_that_is_no_manifest_is_named_alike(
    images: Path, tmp_path: Path, recipe: Callable[..., Recipe], students: Callable[..., Path]
) -> None:
    broken = {"empty": "", "lines": '{"id": "a"}\n{"id"', "number": "3", "binary": "a\0b"}
    plain = recipe(**{"loss.alpha": 0.0, "loss.beta": 0.0})
    for name, text in broken.items():
        manifest = tmp_path / name
        manifest.write_text(text)
        chosen = with_paths(plain, student=students(), manifest=manifest, images=images)
        with pytest.raises(ManifestError) as refused:
            prepare(chosen, None, 1)
        code, found = checks("doctor", manifest, "--images", images)
        told = " ".join([found["manifest"]["text"], *found["manifest"]["details"]])
        assert (code, found["manifest"]["status"]) == (1, "failed")
        # Of a file that is none at all, `data check` says so and ends.
        done = CliRunner().invoke(app, ["data", "check", str(manifest), "--json"])
        if isinstance(done.exception, ManifestError):
            assert str(done.exception) == str(refused.value) == told.strip()
        else:
            report = json.loads(done.stdout)
            texts = [finding["text"] for finding in report["kinds"]["manifest"]["findings"]]
            assert texts
            assert all(text in told and text in str(refused.value) for text in texts)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def norm_of(state: dict[str, torch.Tensor]) -> str:
    return next(name for name in state if name.endswith("norm.weight") and "layers" not in name)


BROKEN: dict[str, Callable[[Path], Any]] = {
    "a layer that config.json does not describe": lambda student: change_weights(
        student, lambda state: state.update({"language_model.model.layers.9.x": torch.ones(2)})
    ),
    "a tensor is missing": lambda student: change_weights(
        student, lambda state: state.pop(norm_of(state))
    ),
    "a tensor of another shape": lambda student: change_weights(
        student, lambda state: state.update({norm_of(state): torch.ones(3)})
    ),
    "quantised weights": lambda student: change_weights(
        student, lambda state: state.update({norm_of(state): state[norm_of(state)].to(torch.int8)})
    ),
    "no weights": lambda student: (student / "model.safetensors").unlink(),
    "weights cut short": lambda student: (student / "model.safetensors").write_bytes(b"12345678"),
    "an end token that no answer has": lambda student: change_json(
        student / "generation_config.json", eos_token_id=3
    ),
    "an end token beyond the vocabulary": lambda student: change_json(
        student / "generation_config.json", eos_token_id=[2, 99999]
    ),
    "a processor that writes other tokens": lambda student: change_json(
        student / "processor_config.json", patch_size=28
    ),
    "a template that does not extend its prompt": lambda student: (
        student / "chat_template.jinja"
    ).write_text(
        (student / "chat_template.jinja").read_text().replace("' ASSISTANT:'", "' DOCTOR:'")
    ),
    "no image token": lambda student: change_json(student / "config.json", image_token_index=99999),
    "a template that cannot be read": lambda student: (student / "chat_template.jinja").write_text(
        "{% if %}"
    ),
}
NAMES = {"tensors": "weights", "processor": "student"}
"""Checks that `student check` has under other names than doctor; all else is called alike."""


@pytest.mark.parametrize("fault", BROKEN)
def test_doctor_student_check_and_train_name_the_same_faults_of_a_student(
    fault: str,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    student = Path(shutil.copytree(students(), tmp_path / "student"))
    BROKEN[fault](student)
    code, by_student = checks("student", "check", student)
    doctors_code, by_doctor = checks("doctor", "--student", student)
    failed = {name: check for name, check in by_student.items() if check["status"] == "failed"}
    assert failed
    assert code == doctors_code == 1
    for name, check in by_student.items():
        if name in ("values", "conversion"):
            continue  # these read every byte, which doctor leaves to `student check`
        twin = by_doctor[NAMES.get(name, name)]
        assert twin["status"] == check["status"]
        assert check["text"] in twin["text"] or name == "processor"
    manifest, images, cache = dataset()
    chosen = with_paths(recipe(), student=student, manifest=manifest, images=images)
    with pytest.raises(StudentError) as refused:
        prepare(chosen, cache, 1)
    first = next(iter(failed.values()))
    if first["name"] != "processor":
        assert f"{NAMES.get(first['name'], first['name'])}: {first['text']}" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("on_missing", "failed", "status"),
    [
        ("drop", 1, "warning"), ("drop", 6, "failed"), ("fail", 1, "failed"),
        ("lm_only", 1, "warning"), ("lm_only", 6, "warning"), ("fail", 0, "ok"),
    ],
)  # fmt: skip
def test_doctor_fails_for_rows_that_are_missing_where_train_would_refuse(
    on_missing: str,
    failed: int,
    status: str,
    dataset: Dataset,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    manifest, images, cache = dataset(failures=dict.fromkeys(range(failed), "cannot be decoded"))
    chosen = recipe(**{"data.on_missing": on_missing})
    path = tmp_path / "recipe.yaml"
    path.write_text(chosen.to_yaml())
    _, found = checks("doctor", manifest, "--cache", cache, "--recipe", path)
    assert found["cache rows"]["status"] == status
    chosen = with_paths(chosen, student=students(), manifest=manifest, images=images)
    if status == "failed":
        with pytest.raises(MissingTeacherError):
            prepare(chosen, cache, 1)
    else:
        prepare(chosen, cache, 1)
