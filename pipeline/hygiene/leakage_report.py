"""Leaks as a table with the first few of each kind, or as JSON with all of them.

Only ids, lines, paths, and names of patients and studies: never a question, answer or report.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..manifest import printable, shorten
from .leakage import KINDS, Kind, Leak, Leaks, Sharers, Side

PRINTED: Final = 5
"""Leaks of each kind that the table lists, and records of each leak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a held-out manifest shares with the training manifest."""

    test: Side
    leaks: Leaks


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakageReport:
    """Everything that a comparison of manifests gave.

    Attributes:
        train: the training manifest.
        comparisons: one for every held-out manifest.
        unreadable: (manifest, path, reason) of images that could not be compared.
        plain: distinct images with too little in them for the perceptual hash.
        images: distinct images that were decoded.
        distance: largest distance of near-same images, in bits of 256.
    """

    train: Side
    comparisons: Sequence[Comparison]
    unreadable: Sequence[tuple[Path, str, str]]
    plain: int
    images: int
    distance: float

    @property
    def shares(self) -> bool:
        """Whether anything is shared."""
        return any(comparison.leaks.all for comparison in self.comparisons)

    @property
    def clean(self) -> bool:
        """Whether nothing is shared, and no image was left uncompared that should have been."""
        return not self.shares and not self.unreadable

    @property
    def by_path(self) -> bool:
        """Whether the images of a manifest are known by their paths only."""
        sides = (self.train, *(comparison.test for comparison in self.comparisons))
        return any(side.root is None and side.has_images for side in sides)

    @property
    def complete(self) -> bool:
        """Whether every image was opened and compared."""
        return not self.by_path and not self.unreadable

    def to_json(self) -> dict[str, Any]:
        """Return everything, for programs."""
        return {
            "clean": self.clean,
            "complete": self.complete,
            "compared_by": "path" if self.by_path else "content",
            "not_compared": len(self.unreadable),
            "train": _side(self.train),
            "tests": [_compared(comparison) for comparison in self.comparisons],
            "images": {
                "distinct": self.images,
                "plain": self.plain,
                "unreadable": [
                    {"manifest": str(manifest), "image": path, "reason": reason}
                    for manifest, path, reason in self.unreadable
                ],
            },
            "distance": self.distance,
        }


def print_report(report: LeakageReport, console: Console) -> None:
    """Print a table for every held-out manifest, and the first leaks of each kind."""
    for comparison in report.comparisons:
        console.print(_table(report.train, comparison))
        for kind in KINDS:
            _print(_listed(comparison.leaks.of(kind)), console)
    _print([*_notes(report), _verdict(report)], console)


def _print(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def _table(train: Side, comparison: Comparison) -> Table:
    test = comparison.test
    title = Text(printable(f"{test.manifest} against {train.manifest}"))
    table = Table(title=title, title_justify="left")
    table.add_column("shared")
    for name in ("leaks", "held-out records", "training records"):
        table.add_column(name, justify="right")
    for kind, name in KINDS.items():
        counts = _counts(comparison.leaks, kind)
        numbers = [
            f"{counts['leaks']:,}",
            _share(counts["test_records"], len(test.members)),
            _share(counts["train_records"], len(train.members)),
        ]
        table.add_row(name, *numbers, style="bold red" if counts["leaks"] else "")
    return table


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / max(whole, 1):.1f}%)" if part else "0"


def _listed(leaks: Sequence[Leak]) -> Iterable[str]:
    for leak in leaks[:PRINTED]:
        how = "" if leak.distance is None else f", {leak.distance:g} of 256 bits"
        yield f"{KINDS[leak.kind]}: {shorten(leak.what)}{how}"
        yield f"  held out: {_members(leak.test)}"
        yield f"  training: {_members(leak.train)}"
    if len(leaks) > PRINTED:
        yield f"{KINDS[leaks[0].kind]}: and {len(leaks) - PRINTED:,} more (--json has all)"


def _notes(report: LeakageReport) -> Iterable[str]:
    for manifest, path, reason in report.unreadable[:PRINTED]:
        yield f"not compared: {shorten(path)} of {manifest}: {reason}"
    if len(report.unreadable) > PRINTED:
        yield f"not compared: and {len(report.unreadable) - PRINTED:,} more (--json has all)"
    if report.plain:
        yield f"{report.plain:,} of {report.images:,} images are too plain for the near-same test"


def _verdict(report: LeakageReport) -> str:
    lost = len(report.unreadable)
    some = "1 image" if lost == 1 else f"{lost:,} images"
    if report.by_path:
        how = "; images were compared by path only: none was opened, give --images to do so"
    elif lost:
        how = f"; {some} could not be compared, see above"
    else:
        how = ""
    if report.shares:
        return f"leaks: see above{how}"
    return (
        f"clean: nothing is shared{how}" if report.clean else f"not clean: no leak was found{how}"
    )


def _members(sharers: Sharers) -> str:
    listed = sharers.listed[:PRINTED]
    names = ", ".join(f"{shorten(member.id)} (line {member.line})" for member in listed)
    more = sharers.count - len(listed)
    return f"{names} and {more:,} more" if more > 0 else names


def _counts(leaks: Leaks, kind: Kind) -> dict[str, int]:
    return {
        "leaks": len(leaks.of(kind)),
        "test_records": len(leaks.test[kind]),
        "train_records": len(leaks.train[kind]),
    }


def _side(side: Side) -> dict[str, Any]:
    root = None if side.root is None else str(side.root)
    return {"manifest": str(side.manifest), "images": root, "records": len(side.members)}


def _compared(comparison: Comparison) -> dict[str, Any]:
    leaks = comparison.leaks
    return {
        **_side(comparison.test),
        "counts": {kind: _counts(leaks, kind) for kind in KINDS},
        "leaks": [_leak(leak) for leak in leaks.all],
        "lines": {"train": _lines(leaks.train), "test": _lines(leaks.test)},
    }


def _leak(leak: Leak) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": leak.kind, "what": leak.what}
    if leak.distance is not None:
        values["distance"] = leak.distance
    for name, sharers in (("train", leak.train), ("test", leak.test)):
        values[name] = [{"id": member.id, "line": member.line} for member in sharers.listed]
        values[f"{name}_records"] = sharers.count
    return values


def _lines(lines: Mapping[Kind, Set[int]]) -> dict[str, list[int]]:
    """The lines of all records that share something, by kind: no leak lists them all."""
    return {kind: sorted(numbers) for kind, numbers in lines.items() if numbers}
