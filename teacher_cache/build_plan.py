"""Which image becomes which row, decided before the first row is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .storage.untrusted import (
    MAX_ROWS,
    TeacherCacheError,
    check_int,
    check_mapping,
    check_relative,
    check_sha256,
    check_text,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An image without a teacher row: its manifest path and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The images that somebody wants to be in a cache.

    Attributes:
        content: SHA-256 (hex) of each image file, distinct, in order of first appearance in the
            manifest.
        paths: manifest path -> place in `content`; several paths may hold one content.
        failures: images that could not even be read for hashing.
    """

    content: tuple[str, ...]
    paths: Mapping[str, int] = field(hash=False)
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        check_int(len(self.content), "number of distinct readable images", 0, MAX_ROWS)
        for digest in self.content:
            check_sha256(digest, "content of a row")
        if len(set(self.content)) != len(self.content):
            raise TeacherCacheError("a plan takes every content once, got a digest twice")
        for path, row in check_mapping(self.paths, "paths").items():
            check_relative(path)
            check_int(row, f"row of {path}", 0, len(self.content) - 1)
        if len(set(self.paths.values())) != len(self.content):
            raise TeacherCacheError("every row of a plan takes at least one path")
        check_failures(self.failures)
        for failure in self.failures:
            if failure.path in self.paths:
                raise TeacherCacheError(f"{failure.path} has both a row and a failure")


def check_failures(failures: tuple[Failure, ...]) -> None:
    """Refuse failures that name no path or give no text.

    Raises:
        TeacherCacheError: names the path.
    """
    for failure in failures:
        check_text(failure.path, "path of a failure")
        check_text(failure.reason, f"{failure.path}: reason", empty=True)
