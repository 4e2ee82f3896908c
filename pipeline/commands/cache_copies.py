"""The commands that make caches out of caches: merge, subset."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...runtime.text import Fact, aligned, plural
from .arguments import FAILED, Json
from .facts import failure_facts, print_facts

if TYPE_CHECKING:
    from ...teacher_cache.copy import CopyReport

New = Annotated[
    str, typer.Option("--out", help="Folder or URL of the new cache.", show_default=False)
]


def merge_command(
    stores: Annotated[
        list[str], typer.Argument(help="Folders or URLs of sealed caches.", show_default=False)
    ],
    out: New,
    prefer: Annotated[
        Literal["first"] | None,
        typer.Option(help="Whose image counts where a path has several.", show_default="none"),
    ] = None,
) -> None:
    """Copy several caches of one expert into a new one, and seal it; no image is read.

    Run the same command again to go on after any interruption.
    """
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.copy import merge

    with ConsoleProgress(unit="shards").counting("copying") as told:
        report = merge(stores, out, told, prefer=prefer)
    _print(report)


def subset_command(
    store: Annotated[
        str, typer.Argument(help="Folder or URL of a sealed cache.", show_default=False)
    ],
    manifest: Annotated[
        Path, typer.Argument(help="Which images: a manifest of them.", show_default=False)
    ],
    out: New,
) -> None:
    """Copy the rows of a manifest's images into a new cache, and seal it; no image is read.

    Run the same command again to go on after any interruption.
    """
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.copy import subset
    from ..planning import list_images

    paths = list_images(manifest).paths
    with ConsoleProgress(unit="shards").counting("copying") as told:
        report = subset(store, paths, out, told)
    _print(report)


def _print(report: "CopyReport") -> None:
    for line in aligned(_copy_facts(report)):
        typer.echo(line)


def _copy_facts(report: "CopyReport") -> Iterator[tuple[str, str]]:
    yield "store", f"{report.store} sealed"
    yield "rows", f"{plural(report.rows, 'row')} in {plural(report.shards, 'shard')}"
    yield "this run", f"{plural(report.copied, 'shard')} copied"
    if report.conflicts:
        yield "conflicts", f"{plural(report.conflicts, 'path')} with the first cache's image"
    if report.differing:
        yield "differing", f"{plural(report.differing, 'image')} with the first cache's numbers"
    yield "content", report.content_hash
    yield from failure_facts(report.failures)


if TYPE_CHECKING:
    from ...teacher_cache.diff import CacheDiff, RowDifference

Side = Annotated[str, typer.Argument(help="Folder or URL of a sealed cache.", show_default=False)]


def diff_command(
    a: Side,
    b: Side,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=0, help="Most rows and paths to name.")] = 10,
) -> None:
    """Say which rows of two caches differ, and how much in units of the losses; exit 1 if any do.

    Images are matched by their content: order, paths, shards and versions do
    not count.
    """
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.diff import diff

    with ConsoleProgress(unit="rows").counting("comparing") as told:
        found = diff(a, b, told, limit=limit)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_facts(_diff_facts(found))
    if not found.equal:
        raise typer.Exit(FAILED)


def _diff_facts(found: "CacheDiff") -> Iterator[Fact]:
    yield "A", found.a
    yield "B", found.b
    yield from _listed("card", found.card)
    yield (
        "in both",
        f"{plural(found.same, 'image')} with the same row, {found.different} with another",
    )
    if found.different and found.comparable:
        yield from _numbers(found)
    elif found.different:
        yield "", "rows of different patch grids cannot be compared"
    for name, count, examples in (
        ("only in A", found.only_a, found.examples_a),
        ("only in B", found.only_b, found.examples_b),
    ):
        if count:
            more = [f"and {count - len(examples)} more"] if count > len(examples) else []
            yield from _listed(name, [plural(count, "image"), *examples, *more])
    for name, count in (("A", found.unsealed_a), ("B", found.unsealed_b)):
        if count:
            yield "not sealed", f"{plural(count, 'row')} added to {name} and not compared"
    if found.equal:
        yield "equal", "both teach the same"


def _numbers(found: "CacheDiff") -> Iterator[Fact]:
    yield "Gram", f"RMS {found.gram_rms:.2e} over rows that differ, largest {found.gram_max:.2e}"
    yield "", f"fitting A exactly leaves L_vis {found.gram_rms**2:.2e} against B"
    yield "attention", f"KL(A || B) up to {found.attention_kl:.2e} nats"
    yield "", f"largest difference {found.attention_max:.2e}"
    left = found.different - len(found.worst)
    more = [f"and {left} more"] if left else []
    yield from _listed("worst", [*map(_row, found.worst), *more])


def _listed(name: str, lines: Sequence[str]) -> Iterator[Fact]:
    for place, line in enumerate(lines):
        yield "" if place else name, line


def _row(each: "RowDifference") -> str:
    where = f"{each.path or 'no path'} (row {each.row_a} and {each.row_b})"
    if each.missing:
        return f"{where}: could not be decoded for {each.missing}"
    valid = f", {each.valid} patches image or padding" if each.valid else ""
    return (
        f"{where}: Gram RMS {each.gram_rms:.2e}, largest {each.gram_max:.2e}, "
        f"KL {each.attention_kl:.2e}{valid}"
    )
