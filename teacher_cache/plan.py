"""Which image becomes which row, decided before the first row is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from .strict import (
    TeacherCacheError,
    check_int,
    check_mapping,
    check_relative,
    check_sha256,
    check_text,
    check_type,
    strict_fields,
)

MAX_ROWS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Failure:
    """An image without a teacher row: its manifest path and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which image becomes which row; written before the first shard, and never changed.

    Attributes:
        content: SHA-256 (hex) of each row's image file, distinct, in order of first appearance
            in the manifest.
        paths: manifest path -> row; several paths may hold one content.
        failures: images that could not even be read for hashing; they have no row.
    """

    content: tuple[str, ...]
    paths: Mapping[str, int] = field(hash=False)
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        check_int(len(self.content), "number of distinct readable images", 1, MAX_ROWS)
        for digest in self.content:
            check_sha256(digest, "content of a row")
        if len(set(self.content)) != len(self.content):
            raise TeacherCacheError("a plan takes every content once, got a digest twice")
        for path, row in check_mapping(self.paths, "paths").items():
            check_relative(path)
            check_int(row, f"row of {path}", 0, len(self.content) - 1)
        if len(set(self.paths.values())) != len(self.content):
            raise TeacherCacheError("every row of a plan takes at least one path")
        for failure in self.failures:
            check_text(failure.path, "path of a failure")
            check_text(failure.reason, f"{failure.path}: reason", empty=True)
            if failure.path in self.paths:
                raise TeacherCacheError(f"{failure.path} has both a row and a failure")

    def differences(self, other: Self) -> list[str]:
        """Say in which images `other` is another plan; reasons of failures do not count."""
        if self.content != other.content:
            mine, theirs = set(self.content), set(other.content)
            counts = f"{len(theirs - mine)} new, {len(mine - theirs)} gone"
            return [f"the images are others ({counts}) or in another order"]
        if self.paths != other.paths:
            changed = sorted(self.paths.items() ^ other.paths.items())
            return [f"the manifest names other paths, for example {changed[0][0]}"]
        mine_failed, theirs_failed = (
            {failure.path for failure in plan.failures} for plan in (self, other)
        )
        if mine_failed != theirs_failed:
            changed_failures = sorted(mine_failed ^ theirs_failed)
            return [f"other images are unreadable, for example {changed_failures[0]}"]
        return []

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; two lists keep the order of the paths."""
        return {
            "content": list(self.content),
            "paths": list(self.paths),
            "path_rows": list(self.paths.values()),
            "failures": [[failure.path, failure.reason] for failure in self.failures],
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the JSON form.

        Raises:
            TeacherCacheError: a key is missing or unknown, or a value cannot be.
        """
        fields = strict_fields(value, ("content", "paths", "path_rows", "failures"), "plan")
        for name, items in fields.items():
            check_type(items, f"plan {name}", list)
        try:
            return cls(
                content=tuple(fields["content"]),
                paths=dict(zip(fields["paths"], fields["path_rows"], strict=True)),
                failures=tuple(Failure(path, reason) for path, reason in fields["failures"]),
            )
        except TeacherCacheError:
            raise
        except (TypeError, ValueError) as error:
            raise TeacherCacheError(f"plan: {error}") from error
