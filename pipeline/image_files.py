"""The image files that a manifest names: which there are, and which are not in their folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from .manifest import ManifestError, Record, resolve_image

Member = TypeVar("Member")


def image_paths(records: Iterable[Record]) -> list[str]:
    """Every image of a manifest once, in its order."""
    return list(dict.fromkeys(path for record in records for path in record.images))


def find_images(root: Path, paths: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Say which images are files in a folder, and of the others why not.

    Returns:
        those that are there, in order; and a path -> text map of the others, where the text is
        the path itself if there just is no such file.
    """
    there: list[str] = []
    absent: dict[str, str] = {}
    for path in paths:
        try:
            found = resolve_image(root, path).is_file()
        except ManifestError as error:
            absent[path] = str(error)
        else:
            if found:
                there.append(path)
            else:
                absent[path] = path
    return there, absent


def even(members: Sequence[Member], count: int | None) -> list[Member]:
    """Evenly spread members of a list, the first and the last included; None takes all."""
    if count is None or len(members) <= count:
        return list(members)
    steps = max(1, count - 1)
    return [members[k * (len(members) - 1) // steps] for k in range(count)]
