"""The commands over several caches: merge, subset, diff."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...runtime import arguments as args
from ...runtime.text import Fact, plural
from .facts import failure_facts, print_facts
from .resume import FAILED

if TYPE_CHECKING:
    from ...teacher_cache.copy import CopyReport
    from ...teacher_cache.diff import CacheDiff, RowDifference


def merge_command(
    stores: args.SealedStores,
    out: args.OutStore,
    prefer: Annotated[
        Literal["first"] | None,
        args.option(
            "first: take a path's image from the first cache that has it.",
            show_default="refuse paths with several images",
        ),
    ] = None,
) -> None:
    """Copy several caches of one expert into a new one, and seal it; no image is read.

    After an interruption, run the same command again.
    """
    _refuse_source(out, stores)
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.copy import merge

    with ConsoleProgress(unit="shards").counting("copying") as progress:
        report = merge(stores, out, progress, prefer=prefer)
    print_facts(_copy_facts(report))


def subset_command(store: args.SealedStore, manifest: args.Manifest, out: args.OutStore) -> None:
    """Copy the rows of a manifest's images into a new cache, and seal it; no image is read.

    After an interruption, run the same command again.
    """
    _refuse_source(out, [store])
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.copy import subset
    from ..planning import list_images

    paths = list_images(manifest).paths
    with ConsoleProgress(unit="shards").counting("copying") as progress:
        report = subset(store, paths, out, progress)
    print_facts(_copy_facts(report))


def diff_command(
    a: args.SealedStore,
    b: args.SealedStore,
    as_json: args.Json = False,
    limit: Annotated[int, args.option("Rows and paths to name at most.", min=0)] = 10,
) -> None:
    """Compare the rows of two caches, in units of the losses; exit 1 if any differ.

    Images are matched by their content: order, paths, shards and versions do
    not count.
    """
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.diff import diff

    with ConsoleProgress(unit="rows").counting("comparing") as progress:
        differences = diff(a, b, progress, limit=limit)
    if as_json:
        typer.echo(json.dumps(differences.to_json(), indent=2))
    else:
        print_facts(_diff_facts(differences))
    if not differences.equal:
        raise typer.Exit(FAILED)


def _refuse_source(out: str, stores: Sequence[str]) -> None:
    if out in stores:
        raise args.ArgumentError(
            f"--out {out}: is one of the caches to copy from; choose another place"
        )


def _copy_facts(report: "CopyReport") -> Iterator[Fact]:
    yield "store", f"{report.store} sealed"
    yield "rows", f"{plural(report.rows, 'row')} in {plural(report.shards, 'shard')}"
    yield "this run", f"{plural(report.copied, 'shard')} copied"
    if report.conflicts:
        yield "conflicts", f"{plural(report.conflicts, 'path')} with the first cache's image"
    if report.differing:
        yield "differing", f"{plural(report.differing, 'image')} with the first cache's numbers"
    yield "content", report.content_hash
    yield from failure_facts(report.failures)


def _diff_facts(diff: "CacheDiff") -> Iterator[Fact]:
    yield "A", diff.a
    yield "B", diff.b
    yield from _listed("card", diff.card)
    yield (
        "in both",
        f"{plural(diff.same, 'image')} with the same row, {diff.different} with another",
    )
    if diff.different and diff.comparable:
        yield from _numbers(diff)
    elif diff.different:
        yield "", "rows of different patch grids cannot be compared"
    for name, count, examples in (
        ("only in A", diff.only_a, diff.examples_a),
        ("only in B", diff.only_b, diff.examples_b),
    ):
        if count:
            more = [f"and {count - len(examples)} more"] if count > len(examples) else []
            yield from _listed(name, [plural(count, "image"), *examples, *more])
    for name, count in (("A", diff.unsealed_a), ("B", diff.unsealed_b)):
        if count:
            yield "not sealed", f"{plural(count, 'row')} added to {name} and not compared"
    if diff.equal:
        yield "equal", "both teach the same"


def _numbers(diff: "CacheDiff") -> Iterator[Fact]:
    yield "Gram", f"RMS {diff.gram_rms:.2e} over rows that differ, largest {diff.gram_max:.2e}"
    yield "", f"fitting A exactly leaves L_vis {diff.gram_rms**2:.2e} against B"
    yield "attention", f"KL(A || B) up to {diff.attention_kl:.2e} nats"
    yield "", f"largest difference {diff.attention_max:.2e}"
    unnamed = diff.different - len(diff.worst)
    more = [f"and {unnamed} more"] if unnamed else []
    yield from _listed("worst", [*map(_row, diff.worst), *more])


def _listed(name: str, lines: Sequence[str]) -> Iterator[Fact]:
    for k, line in enumerate(lines):
        yield "" if k else name, line


def _row(row: "RowDifference") -> str:
    name = f"{row.path or 'no path'} (row {row.row_a} and {row.row_b})"
    if row.missing:
        return f"{name}: could not be decoded for {row.missing}"
    valid = f", {row.valid} patches image or padding" if row.valid else ""
    return (
        f"{name}: Gram RMS {row.gram_rms:.2e}, largest {row.gram_max:.2e}, "
        f"KL {row.attention_kl:.2e}{valid}"
    )
