"""Write results as JSON files that say what they were computed from."""

import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..runtime.files import make_folder, sha256_file, write_durably
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
    try:
        make_folder(path.parent)
        write_durably(path, text.encode("utf-8"))
    except OSError as error:
        reason = (error.strerror or "error").lower()
        raise AnswersError(f"{path}: cannot be written: {reason}") from None


def identify_file(path: Path) -> dict[str, str]:
    """Return path and SHA-256 of a file."""
    return {"path": str(path), "sha256": sha256_file(path)}


def package_version(package: str) -> str:
    """Return the version of the distribution that computes a metric."""
    return __version__ if package == "medalign" else importlib.metadata.version(package)
