"""How leaks are told: a table and the first few of each kind, or JSON with all of them.

Only ids, lines, paths, and names of patients and studies: never a question, answer or report.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from .leakage import KINDS, Kind, Leak
from .side import Member, Side

SHOWN: Final = 5
"""Leaks of each kind that the table lists, and records of each leak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Hold what a held-out manifest shares with the training manifest."""

    test: Side
    leaks: Sequence[Leak]

    def of(self, kind: Kind) -> list[Leak]:
        """The leaks of one kind."""
        return [leak for leak in self.leaks if leak.kind == kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakageReport:
    """Hold everything that was found.

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
    def clean(self) -> bool:
        """Whether nothing is shared."""
        return not any(each.leaks for each in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        """Return everything, for programs."""
        return {
            "clean": self.clean,
            "train": _side(self.train),
            "tests": [
                {
                    **_side(each.test),
                    "counts": {kind: _counts(each.of(kind)) for kind in KINDS},
                    "leaks": [_leak(leak) for leak in each.leaks],
                }
                for each in self.comparisons
            ],
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
    for each in report.comparisons:
        console.print(_table(report.train, each))
        for kind in KINDS:
            for line in _listed(each.of(kind)):
                console.print(line, soft_wrap=True, markup=False, highlight=False)
    for line in _notes(report):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _table(train: Side, found: Comparison) -> Table:
    test = found.test
    table = Table(title=f"{test.manifest} against {train.manifest}", title_justify="left")
    table.add_column("shared")
    for name in ("leaks", "held-out records", "training records"):
        table.add_column(name, justify="right")
    for kind, name in KINDS.items():
        leaks = found.of(kind)
        counts = _counts(leaks)
        numbers = [
            f"{counts['leaks']:,}",
            _share(counts["test_records"], len(test.members)),
            _share(counts["train_records"], len(train.members)),
        ]
        table.add_row(name, *numbers, style="bold red" if leaks else "")
    return table


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / max(whole, 1):.1f}%)" if part else "0"


def _listed(leaks: Sequence[Leak]) -> Iterable[str]:
    for leak in leaks[:SHOWN]:
        how = "" if leak.distance is None else f", {leak.distance:g} of 256 bits"
        yield f"{KINDS[leak.kind]}: {leak.what}{how}"
        yield f"  held out: {_members(leak.test)}"
        yield f"  training: {_members(leak.train)}"
    if len(leaks) > SHOWN:
        yield f"{KINDS[leaks[0].kind]}: and {len(leaks) - SHOWN:,} more (--json has all)"


def _notes(report: LeakageReport) -> Iterable[str]:
    if report.train.root is None or any(each.test.root is None for each in report.comparisons):
        yield "without --images, images are compared by their paths alone"
    for manifest, path, reason in report.unreadable[:SHOWN]:
        yield f"not compared: {path} of {manifest}: {reason}"
    if len(report.unreadable) > SHOWN:
        yield f"not compared: and {len(report.unreadable) - SHOWN:,} more (--json has all)"
    if report.plain:
        yield f"{report.plain:,} of {report.images:,} images are too plain for the near-same test"
    yield "clean: nothing is shared" if report.clean else "leaks: see above"


def _members(members: Sequence[Member]) -> str:
    shown = ", ".join(f"{member.id} (line {member.line})" for member in members[:SHOWN])
    more = len(members) - SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


def _counts(leaks: Sequence[Leak]) -> dict[str, int]:
    return {
        "leaks": len(leaks),
        "test_records": len({member.line for leak in leaks for member in leak.test}),
        "train_records": len({member.line for leak in leaks for member in leak.train}),
    }


def _side(side: Side) -> dict[str, Any]:
    root = None if side.root is None else str(side.root)
    return {"manifest": str(side.manifest), "images": root, "records": len(side.members)}


def _leak(leak: Leak) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": leak.kind, "what": leak.what}
    if leak.distance is not None:
        found |= {"distance": leak.distance, "train_images_not_listed": leak.more}
    for name, members in (("train", leak.train), ("test", leak.test)):
        found[name] = [{"id": member.id, "line": member.line} for member in members]
    return found
