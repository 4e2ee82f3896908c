"""The image files that a manifest names: which there are, and which are not in their folder."""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .manifest import ImageFolder, ManifestError, Record
from .records import shorten

Member = TypeVar("Member")

_TOLD_EVERY = 1000


@dataclass(frozen=True, slots=True)
class Absent:
    """Why there is no file at a path; as text, one line for a message.

    Attributes:
        path: as in the manifest.
        reason: what stands in the way, empty where there just is no such file.
        outside: whether the path leads out of the folder.
    """

    path: str
    reason: str = ""
    outside: bool = False

    def __str__(self) -> str:
        """Return the reason where it names the path, else the path, with the reason if any."""
        if self.outside:
            return self.reason
        return shorten(self.path) + (f": {self.reason}" if self.reason else "")


def image_paths(records: Iterable[Record]) -> list[str]:
    """Every image of a manifest once, in its order."""
    return list(dict.fromkeys(path for record in records for path in record.images))


def find_images(
    root: Path, paths: Iterable[str], tell: Callable[[int], object] | None = None
) -> tuple[list[str], dict[str, Absent]]:
    """Say which images are files in a folder, and of the others why not.

    Args:
        root: the folder.
        paths: relative to it.
        tell: called now and then with how many more paths were looked at.

    Returns:
        those that are there, in order; and a map from the others to why they are not.
    """
    folder = ImageFolder(root)
    there: list[str] = []
    absent: dict[str, Absent] = {}
    count = 0
    for count, path in enumerate(paths, start=1):
        problem = _problem(folder, path)
        if problem is None:
            there.append(path)
        else:
            absent[path] = problem
        if tell is not None and count % _TOLD_EVERY == 0:
            tell(_TOLD_EVERY)
    if tell is not None:
        tell(count % _TOLD_EVERY)
    return there, absent


def _problem(folder: ImageFolder, path: str) -> Absent | None:
    try:
        found = stat.S_ISREG(os.stat(folder.resolve(path)).st_mode)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        found = False
    except ManifestError as error:
        return Absent(path, str(error), outside=True)
    except OSError as error:  # a name too long, a folder that may not be entered, a loop of links
        return Absent(path, (error.strerror or str(error)).lower())
    return None if found else Absent(path)


def even(members: Sequence[Member], count: int | None) -> list[Member]:
    """Evenly spread members of a list, the first and the last included; None takes all."""
    if count is None or len(members) <= count:
        return list(members)
    steps = max(1, count - 1)
    return [members[k * (len(members) - 1) // steps] for k in range(count)]
