"""Is a converted folder still as its conversion.json says?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..doctor.check import Check
from .errors import ConvertError
from .json_file import read_object
from .stage import Stage
from .workplace import RECORD, sha256_file


def check_record(folder: Path, stage: Stage) -> Check:
    """Compare every file with the checksums of its conversion.

    Args:
        folder: of the student, with a conversion.json.
        stage: told how far it is.
    """
    try:
        title, files = _record(folder / RECORD)
    except (ConvertError, OSError) as error:
        return Check("conversion", "failed", str(error), "convert again, or copy the folder again")
    changed = []
    with stage("checksums", sum(file["bytes"] for file in files.values())) as told:
        for name, file in files.items():
            path = folder / name
            if not path.is_file():
                changed.append(f"{name} is missing")
            elif sha256_file(path, told) != file["sha256"]:
                changed.append(f"{name} is not as it was converted")
    if changed:
        lost = any(line.startswith("model") or line.endswith("missing") for line in changed)
        text = f"{len(changed)} of {len(files)} files differ from {RECORD}"
        advice = "convert again, or copy the folder again" if lost else "right if you changed them"
        return Check("conversion", "failed" if lost else "warning", text, advice, tuple(changed))
    return Check("conversion", "ok", f"{title}: all {len(files)} files as they were converted")


def _record(path: Path) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """What was converted, and size and checksum of every file."""
    values = read_object(path)
    files: dict[str, Mapping[str, Any]] = {}
    for key in ("weights", "others"):
        listed = values.get(key)
        if not isinstance(listed, dict) or not listed:
            raise ConvertError(f"{path} lists no files under {key}")
        files |= listed
    for name, file in files.items():
        known = isinstance(file, dict) and isinstance(file.get("bytes"), int)
        if not known or not isinstance(file.get("sha256"), str):
            raise ConvertError(f"{path}: {name} has no size and checksum")
    title = values.get("title")
    if not isinstance(title, str):
        raise ConvertError(f"{path} does not say its title, so it is not as it was written")
    return title, files
