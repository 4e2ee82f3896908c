"""`medalign cache diff`."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .command_options import FAILED, Json
from .report import Fact, plural, print_facts

if TYPE_CHECKING:
    from ..teacher_cache.diff import CacheDiff, RowDifference

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
    from ..teacher_cache.diff import diff
    from .progress import ConsoleProgress

    with ConsoleProgress(unit="rows").counting("comparing") as told:
        found = diff(a, b, told, limit=limit)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_facts(_facts(found))
    if not found.equal:
        raise typer.Exit(FAILED)


def _facts(found: "CacheDiff") -> Iterator[Fact]:
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
