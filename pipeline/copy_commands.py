"""The commands that make caches out of caches: merge, subset."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..teacher_cache.copy import CopyReport

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
    from ..teacher_cache.copy import merge
    from .progress import ConsoleProgress

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
    from ..teacher_cache.copy import subset
    from .planning import list_images
    from .progress import ConsoleProgress

    paths = list_images(manifest).paths
    with ConsoleProgress(unit="shards").counting("copying") as told:
        report = subset(store, paths, out, told)
    _print(report)


def _print(report: "CopyReport") -> None:
    from .report import aligned

    for line in aligned(_facts(report)):
        typer.echo(line)


def _facts(report: "CopyReport") -> Iterator[tuple[str, str]]:
    from .report import failure_facts, plural

    yield "store", f"{report.store} sealed"
    yield "rows", f"{plural(report.rows, 'row')} in {plural(report.shards, 'shard')}"
    yield "this run", f"{plural(report.copied, 'shard')} copied"
    if report.conflicts:
        yield "conflicts", f"{plural(report.conflicts, 'path')} with the first cache's image"
    if report.differing:
        yield "differing", f"{plural(report.differing, 'image')} with the first cache's numbers"
    yield "content", report.content_hash
    yield from failure_facts(report.failures)
