"""`medalign data check`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..command_options import FAILED, Json
from ..records import printable, shorten
from .stopping import stopping

if TYPE_CHECKING:
    from rich.console import Console

    from .findings import Finding, Findings

SHOWN = 5
"""Findings of each kind that the table lists."""


class CheckError(ValueError):
    """A check that cannot be made as asked."""


def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest to look at.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of its images and masks.", show_default="look at no file"),
    ] = None,
    decode: Annotated[
        str, typer.Option(help="How many images to decode, evenly spread, or all.")
    ] = "all",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes.", show_default="the CPUs, at most 8")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say everything that would fail later, all at once, by line; exit code 1 if anything would.

    Looks at every record and every file. Questions, answers and reports are
    never printed.
    """
    import json

    from rich.console import Console

    from ..progress import ConsoleProgress
    from ..workers import default_workers
    from .check import check_manifest

    if images is not None and not images.is_dir():
        raise CheckError(f"--images: {images} is no folder")
    with stopping("stopped; nothing is written by this command, run it again"):
        found = check_manifest(
            manifest,
            images,
            decode=_count(decode),
            workers=default_workers() if workers is None else workers,
            progress=ConsoleProgress(),
        )
    if as_json:
        typer.echo(json.dumps(_to_json(manifest, found), indent=2))
    else:
        _print(manifest, found, Console())
    if found.errors:
        raise typer.Exit(FAILED)


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise CheckError(f"--decode takes a number or all, got {text!r}")
    return int(text)


def _to_json(manifest: Path, found: "Findings") -> dict[str, Any]:
    from .findings import KINDS

    return {
        "manifest": str(manifest),
        "records": found.records,
        "images": found.images,
        "decoded": found.decoded,
        "errors": found.errors,
        "warnings": len(found.found) - found.errors,
        "kinds": {
            name: {
                "severity": kind.severity,
                "what": kind.what,
                "then": kind.then,
                "count": len(findings),
                "findings": [
                    {"line": each.line, "id": each.id, "text": each.text} for each in findings
                ],
            }
            for name, kind in KINDS.items()
            if (findings := found.of(name))
        },
    }


def _print(manifest: Path, found: "Findings", console: "Console") -> None:
    from rich.table import Table

    from .findings import KINDS

    facts = f"{manifest}: {found.records:,} records, {found.images:,} images"
    _say(console, f"{facts}, {found.decoded:,} of them decoded")
    grouped = {name: findings for name in KINDS if (findings := found.of(name))}
    table = Table("", "found", "count", "what comes of it")
    for name, findings in grouped.items():
        kind = KINDS[name]
        style = "bold red" if kind.severity == "error" else "yellow"
        table.add_row(kind.severity, kind.what, f"{len(findings):,}", kind.then, style=style)
    if grouped:
        console.print(table)
    for name, findings in grouped.items():
        _say(console, f"{KINDS[name].what}:")
        for each in findings[:SHOWN]:
            _say(console, f"  {_where(found.unit, each)}: {each.text}")
        if len(findings) > SHOWN:
            _say(console, f"  and {len(findings) - SHOWN:,} more (--json has all)")
    warnings = len(found.found) - found.errors
    _say(console, f"{found.errors:,} errors, {warnings:,} warnings")


def _where(unit: str, finding: "Finding") -> str:
    return f"{unit} {finding.line}" + ("" if finding.id is None else f", {shorten(finding.id)}")


def _say(console: "Console", line: str) -> None:
    console.print(printable(line), soft_wrap=True, markup=False, highlight=False)
