"""What answers: a finished or stopped run, an adapter, or a student by itself."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch

from ..pipeline.pixels import Alpha
from ..trainer.run.folder import RunFolder
from ..trainer.student import load_base, load_student, read_identity
from ..trainer.students.spec import StudentError, StudentSpec, read_student, student_digest
from .predictions import first_repeated

_SMALL: Final = frozenset({".json", ".jinja", ".model", ".txt"})


@dataclass(frozen=True, slots=True)
class Source:
    """A student's folder, and the adapter to put on it, if any.

    Attributes:
        student: folder of the base model.
        adapter: folder of the adapter, None for the student by itself.
        geometry: as the run was trained.
        alpha: colour behind transparent pixels, as the run was trained.
        unfinished: a note for the user where the adapter is an unfinished run's.
    """

    student: Path
    adapter: Path | None
    geometry: str = "processor"
    alpha: Alpha = "black"
    unfinished: str = ""

    def spec(self) -> StudentSpec:
        """Read the description in the student's folder."""
        return read_student(self.student, self.geometry)

    def layer(self) -> int | None:
        """Return the layer that the adapter was trained at, from 0; None without an adapter."""
        if self.adapter is None:
            return None
        return int(read_identity(self.adapter)["recipe"]["loss"]["layer"])

    @staticmethod
    def dtype(device: torch.device) -> torch.dtype:
        """Type of the weights while answering."""
        return torch.bfloat16 if device.type == "cuda" else torch.float32

    def load(self, device: torch.device, *, probe: bool = False) -> Any:
        """Load the model for answering: bfloat16 on a GPU, float32 on a CPU."""
        base = load_base(self.student, self.dtype(device), device=device)
        if self.adapter is None:
            return base
        return load_student(base, self.adapter, probe=probe)

    def identity(self, device: torch.device) -> dict[str, str | None]:
        """Return what distinguishes one model from another, without reading all of its weights.

        Digests of the student's weights, of its small files (tokenizer, template, processor, end
        tokens) and of the adapter; how images become pixels; the type of the weights.
        """
        adapter = None
        if self.adapter is not None:
            weights = self.adapter / "adapter_model.safetensors"
            adapter = _digest([weights, self.adapter / "adapter_config.json"])
        small = [file for file in self.student.iterdir() if file.suffix in _SMALL]
        return {
            "student": student_digest(self.student),
            "student_files": _digest(sorted(small)),
            "adapter": adapter,
            "geometry": self.geometry,
            "alpha": self.alpha,
            "dtype": str(self.dtype(device)).removeprefix("torch."),
        }


def find_source(path: Path, student: Path | None = None) -> Source:
    """Resolve RUN_OR_STUDENT.

    Args:
        path: a run folder, an adapter folder, or a student's folder.
        student: where the student is now, if it moved since the run.

    Raises:
        StudentError: there is no such folder or it is none of the three, the run has no adapter
            yet, or its student is not there.
    """
    kind = kind_of(path)
    if kind == "run":
        adapter = _adapter_of_run(path)
        source = _source(adapter, student)
        if adapter == RunFolder(path).adapter:
            return source
        step = adapter.parent.name
        note = f"{path} is not finished: these are answers of its checkpoint {step}"
        return replace(source, unfinished=note)
    return _source(path, student) if kind == "adapter" else Source(path, None)


def kind_of(path: Path) -> Literal["run", "adapter", "student"]:
    """Tell by its files what a folder is.

    Raises:
        StudentError: there is no such folder, or it is none of the three.
    """
    if (path / "recipe.yaml").is_file():
        return "run"
    if (path / "adapter_config.json").is_file():
        return "adapter"
    if (path / "config.json").is_file():
        return "student"
    if not path.exists():
        raise StudentError(
            f"{path} does not exist; give a run's, an adapter's or a student's folder"
        )
    raise StudentError(
        f"{path} is no run (recipe.yaml), adapter (adapter_config.json) or student (config.json)"
    )


def source_names(paths: Sequence[Path]) -> list[str]:
    """Return a short name for every RUN_OR_STUDENT: its last part, or all of it where two agree.

    Raises:
        StudentError: one is given twice.
    """
    if repeated := first_repeated(paths):
        raise StudentError(f"{repeated} is given twice")
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of names and contents."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _source(adapter: Path, student: Path | None) -> Source:
    about = read_identity(adapter)
    written = about["recipe"]["student"]["path"]
    base = student or (None if written is None else Path(written))
    if base is None or not (base / "config.json").is_file():
        if student is not None:
            problem = "has no config.json" if student.is_dir() else "is no folder"
            raise StudentError(
                f"--student {student} {problem}; give the student that {adapter} was trained on, a "
                "folder in Hugging Face format"
            )
        raise StudentError(f"the student of {adapter} is not at {base}; give --student DIR")
    if student_digest(base) != about["student"]:
        raise StudentError(f"{base} is not the student that {adapter} was trained on")
    return Source(base, adapter, about["recipe"]["student"]["geometry"], about["alpha"])


def _adapter_of_run(run: Path) -> Path:
    folder = RunFolder(run)
    if folder.adapter.is_dir():
        return folder.adapter
    newest = folder.newest()
    if newest is None:
        raise StudentError(f"{run} has no adapter yet: no checkpoint was written")
    return newest / "adapter"
