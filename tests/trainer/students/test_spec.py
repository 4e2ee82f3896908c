"""What a folder may do to the machine that reads it, and how folders are told apart."""

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import dynamic_module_utils

from medalign.trainer.export.processor import read_processor
from medalign.trainer.students.spec import StudentError, read_student, student_digest

PLACES = ("model", "tokenizer", "processor", "images")
SIDE_EFFECT = "from pathlib import Path\n\nPath(__file__).parent.joinpath('ran').touch()\n"


@pytest.fixture
def copied(students: Callable[..., Path], tmp_path: Path) -> Path:
    """A student's folder that a test may change."""
    return Path(shutil.copytree(students(), tmp_path / "student"))


def bring_code(folder: Path, place: str) -> None:
    """Give a folder a class of its own, where transformers knows none of that name."""
    (folder / "own.py").write_text(SIDE_EFFECT)
    file = {"model": "config.json", "tokenizer": "tokenizer_config.json"}.get(
        place, "processor_config.json"
    )
    values = json.loads((folder / file).read_text())
    if place == "model":
        values |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    elif place == "tokenizer":
        values |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    elif place == "processor":
        values |= {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}}
    else:
        images = values["image_processor"]
        images |= {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    (folder / file).write_text(json.dumps(values))


def forget_the_processor_class(folder: Path) -> None:
    """Take away the name of the processor, so that transformers goes by the kind of model."""
    for file in ("processor_config.json", "tokenizer_config.json"):
        values = json.loads((folder / file).read_text())
        values.pop("processor_class", None)
        (folder / file).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("place", "named", "read"),
    [
        *[(place, True, read) for place in PLACES for read in (read_student, read_processor)],
        *[(place, False, read_student) for place in PLACES],
    ],
)
def test_code_in_a_folder_never_runs_whatever_is_typed(
    place: str,
    named: bool,
    read: Callable[[Path], Any],
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not named:
        forget_the_processor_class(copied)
    bring_code(copied, place)
    (tmp_path / "modules").mkdir()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    typed = io.StringIO("y\n" * 5)
    monkeypatch.setattr(sys, "stdin", typed)
    with contextlib.suppress(StudentError, ValueError):  # refused, or read without that code
        read(copied)
    assert typed.tell() == 0  # nobody was asked
    assert not list(tmp_path.rglob("ran"))


def test_a_model_that_only_the_folders_code_knows_is_refused_in_one_line(copied: Path) -> None:
    bring_code(copied, "model")
    with pytest.raises(StudentError, match=r"code of its own.*the run or the adapter") as error:
        read_student(copied)
    assert "\n" not in str(error.value)


def test_folders_of_pickled_weights_are_told_apart_without_unpickling(copied: Path) -> None:
    weights = copied / "model.safetensors"
    torch.save(load_file(weights), copied / "pytorch_model.bin")
    beside = student_digest(copied)
    weights.unlink()
    first = student_digest(copied)
    assert first != beside
    pickled = (copied / "pytorch_model.bin").read_bytes()
    (copied / "pytorch_model.bin").write_bytes(b"no pickle" + pickled[9:])
    second = student_digest(copied)
    (copied / "pytorch_model.bin").write_bytes(pickled + b"1")
    third = student_digest(copied)
    (copied / "pytorch_model.bin").rename(copied / "pytorch_model-00001-of-00001.bin")
    assert len({first, second, third, student_digest(copied)}) == 4


def test_training_leftovers_do_not_change_which_student_it_is(copied: Path) -> None:
    wanted = student_digest(copied)
    (copied / "training_args.bin").write_bytes(b"settings")
    (copied / "pytorch_model.bin").write_bytes(b"unread beside safetensors")
    assert student_digest(copied) == wanted


@pytest.mark.parametrize(
    ("family", "file", "section", "key", "refusal"),
    [
        ("gemma3", "processor_config.json", "image_processor", "do_pan_and_scan", "into crops"),
        ("qwen2_5_vl", "config.json", "text_config", "use_sliding_window", "sliding windows"),
    ],
)
def test_what_a_family_cannot_be_trained_with_is_refused(
    family: str,
    file: str,
    section: str,
    key: str,
    refusal: str,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(family_folder(family), tmp_path / family))
    read_student(folder)
    values = json.loads((folder / file).read_text())
    values[section][key] = True
    (folder / file).write_text(json.dumps(values))
    with pytest.raises(StudentError, match=refusal):
        read_student(folder)
