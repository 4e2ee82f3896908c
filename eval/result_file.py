"""Write results as JSON files that say what they were computed from."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from .predictions import AnswersError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def result_json(result: "DataclassInstance") -> str:
    """Return a result as indented JSON: the text of its file."""
    return json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n"


def write_result(path: Path, text: str) -> None:
    """Write a result file, whole or not at all; missing folders are made.

    Raises:
        AnswersError: the file cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        reason = (error.strerror or "error").lower()
        raise AnswersError(f"{path}: cannot be written: {reason}") from None


def identify_file(path: Path) -> dict[str, str]:
    """Return path and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def package_version(package: str) -> str:
    """Return the version of the distribution that computes a metric."""
    return __version__ if package == "medalign" else importlib.metadata.version(package)
