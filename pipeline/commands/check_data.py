"""`medalign data check` and `medalign data leakage`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ...runtime import arguments as args
from ..manifest import printable
from .resume import FAILED, stopping

if TYPE_CHECKING:
    from rich.console import Console

    from ..hygiene.leakage_report import LeakageReport
    from ..hygiene.manifest_check import Findings

SHOWN: Final = 5
"""Findings of each kind that the table lists."""

_BEGIN: Final = b'{\n  "clean": '
"""How every result begins, as `_write` writes it."""


def _no_count(text: str) -> str:
    return "" if text == "all" or text.isdecimal() else "is neither a number nor all"


def check(
    manifest: args.Manifest,
    images: args.SomeImages = None,
    decode: Annotated[
        str, args.option("Images to decode, evenly spread: a number or all.", problem=_no_count)
    ] = "all",
    workers: args.Workers = None,
    as_json: args.Json = False,
) -> None:
    """List everything in a manifest that would fail later; exit 1 if anything would.

    Checks every record, and with --images every image and mask. Questions,
    answers and reports are never printed.
    """
    from rich.console import Console

    from ...runtime.processes import default_workers
    from ...runtime.progress import ConsoleProgress
    from ..hygiene.image_check import check_data

    with stopping(lambda: "stopped; this command writes nothing, run it again"):
        findings = check_data(
            manifest,
            images,
            decode=None if decode == "all" else int(decode),
            workers=default_workers() if workers is None else workers,
            progress=ConsoleProgress(),
        )
    if as_json:
        typer.echo(json.dumps(_to_json(manifest, findings), indent=2))
    else:
        _print(manifest, findings, Console())
    if findings.errors:
        raise typer.Exit(FAILED)


def _to_json(manifest: Path, findings: "Findings") -> dict[str, Any]:
    from ..hygiene.manifest_check import KINDS

    return {
        "manifest": str(manifest),
        "records": findings.records,
        "images": findings.images,
        "decoded": findings.decoded,
        "errors": findings.errors,
        "warnings": len(findings.all) - findings.errors,
        "kinds": {
            name: {
                "severity": kind.severity,
                "what": kind.what,
                "then": kind.then,
                "count": len(same),
                "findings": [
                    {"line": finding.line, "id": finding.id, "text": finding.text}
                    for finding in same
                ],
            }
            for name, kind in KINDS.items()
            if (same := findings.of(name))
        },
    }


def _print(manifest: Path, findings: "Findings", console: "Console") -> None:
    from rich.table import Table

    from ..hygiene.manifest_check import KINDS

    facts = f"{manifest}: {findings.records:,} records, {findings.images:,} images"
    _print_line(console, f"{facts}, {findings.decoded:,} of them decoded")
    grouped = {name: same for name in KINDS if (same := findings.of(name))}
    table = Table("", "found", "count", "what comes of it")
    for name, same in grouped.items():
        kind = KINDS[name]
        style = "bold red" if kind.severity == "error" else "yellow"
        table.add_row(kind.severity, kind.what, f"{len(same):,}", kind.then, style=style)
    if grouped:
        console.print(table)
    for name, same in grouped.items():
        _print_line(console, f"{KINDS[name].what}:")
        for finding in same[:SHOWN]:
            _print_line(console, f"  {findings.place(finding)}: {finding.text}")
        if len(same) > SHOWN:
            _print_line(console, f"  and {len(same) - SHOWN:,} more (--json has all)")
    warnings = len(findings.all) - findings.errors
    _print_line(console, f"{findings.errors:,} errors, {warnings:,} warnings")


def _print_line(console: "Console", line: str) -> None:
    console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def leakage(
    train: Annotated[Path, args.argument("Manifest that is trained on.", args.no_file)],
    test: Annotated[list[Path], args.argument("Held-out manifests.", args.no_file)],
    images: Annotated[
        list[str] | None,
        args.option(
            "Folder of the images: one for all manifests, or MANIFEST=DIR for each.",
            show_default="compare paths alone",
        ),
    ] = None,
    distance: Annotated[
        int, args.option("Bits of 256 in which near-same images differ at most.", min=0, max=96)
    ] = 16,
    keep: Annotated[
        Path | None,
        args.option(
            "File of fingerprints; its images are not decoded again.", problem=args.no_new_file
        ),
    ] = None,
    workers: args.Workers = None,
    as_json: Annotated[
        Path | None,
        args.option("File to write everything to, as JSON.", "--json", problem=args.no_new_file),
    ] = None,
) -> None:
    """List what a training manifest shares with held-out ones; exit 1 if anything.

    Same image, question and answer; same image file; same pixels; near-same
    image; same patient or study. Exit code 1 also if an image could not be
    compared. Questions, answers and reports are never printed.
    """
    folders = image_folders([train, *test], images or [])
    if as_json is not None:
        refuse_to_replace(as_json, {"a manifest": [train, *test], "--keep": [keep] if keep else []})
    from rich.console import Console

    from ..hygiene.leakage_report import print_report

    fingerprints = f"; fingerprints in {keep} stay" if keep else ""
    with stopping(lambda: f"stopped{fingerprints}; run the same command again to continue"):
        report = _compare(train, test, folders, distance, keep, workers)
    if as_json is not None:
        _write(as_json, report)
    print_report(report, Console())
    if not report.clean:
        raise typer.Exit(FAILED)


def refuse_to_replace(path: Path, inputs: Mapping[str, list[Path]]) -> None:
    """Let `--json` replace a result of this command, and nothing else.

    Raises:
        ArgumentError: the file is one of the inputs, by whatever name, or no such result.
    """
    for name, files in inputs.items():
        for file in files:
            same = path.samefile(file) if path.exists() and file.exists() else False
            if same or path.absolute() == file.absolute():
                raise args.ArgumentError(
                    f"--json {path} is {name} of this command; name a new file"
                )
    if path.is_file():
        with path.open("rb") as existing:
            head = existing.read(len(_BEGIN))
        if head and head != _BEGIN:
            raise args.ArgumentError(
                f"--json {path} exists and is no result of `data leakage`; name a new file"
            )


def _write(path: Path, report: "LeakageReport") -> None:
    from ...runtime.files import make_folder, write_durably

    make_folder(path.parent)
    write_durably(path, json.dumps(report.to_json(), indent=2).encode() + b"\n")


def _compare(
    train: Path,
    tests: Sequence[Path],
    folders: Mapping[Path, Path | None],
    distance: int,
    keep: Path | None,
    workers: int | None,
) -> "LeakageReport":
    from ...runtime.processes import default_workers
    from ...runtime.progress import ConsoleProgress
    from ..hygiene.fingerprints import fingerprint_file, read_contents
    from ..hygiene.leakage import find_leaks, read_side
    from ..hygiene.leakage_report import Comparison, LeakageReport

    here, *others = (read_side(path, folders[path]) for path in (train, *tests))
    count = default_workers() if workers is None else workers
    progress = ConsoleProgress()
    with fingerprint_file(keep) as known:
        contents = read_contents([here, *others], count, progress, known)
    prints = contents.fingerprints
    return LeakageReport(
        train=here,
        comparisons=[
            Comparison(test=other, leaks=find_leaks(here, other, prints, distance, progress))
            for other in others
        ],
        unreadable=contents.unreadable,
        plain=sum(fingerprint.plain for fingerprint in prints.values()),
        images=len(prints),
        distance=distance,
    )


def image_folders(manifests: list[Path], words: list[str]) -> dict[Path, Path | None]:
    """Return the folder of each manifest's images, None where there is none.

    Raises:
        ArgumentError: a folder is none, two are given for one manifest, or some manifests have one
            and others have not.
    """
    folders: dict[Path, Path | None] = dict.fromkeys(manifests)
    for word in words:
        name, equals, folder = word.partition("=")
        own = bool(equals) and Path(name) in folders  # a folder's name may hold a = itself
        for manifest in [Path(name)] if own else folders:
            if folders[manifest] is not None:
                raise args.ArgumentError(
                    f"--images {word}: {manifest} has a folder already; give one folder for all, "
                    "or MANIFEST=DIR once for each, with the manifest spelt as before"
                )
            folders[manifest] = Path(folder if own else word)
    for manifest, root in folders.items():
        if root is None and words:
            raise args.ArgumentError(
                f"--images lacks a folder for {manifest}: give {manifest}=DIR too"
            )
        if root is not None and (problem := args.no_folder(str(root))):
            raise args.ArgumentError(f"--images {root}: {problem}")
    return folders
