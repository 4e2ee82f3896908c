"""`medalign data check`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..manifest import printable
from .arguments import FAILED, Json, stopping

if TYPE_CHECKING:
    from rich.console import Console

    from ..hygiene.manifest_check import Findings

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

    from ...runtime.processes import default_workers
    from ...runtime.progress import ConsoleProgress
    from ..hygiene.image_check import check_data

    if images is not None and not images.is_dir():
        raise CheckError(f"--images: {images} is no folder")
    with stopping("stopped; nothing is written by this command, run it again"):
        found = check_data(
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
    from ..hygiene.manifest_check import KINDS

    return {
        "manifest": str(manifest),
        "records": found.records,
        "images": found.images,
        "decoded": found.decoded,
        "errors": found.errors,
        "warnings": len(found.all) - found.errors,
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

    from ..hygiene.manifest_check import KINDS

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
            _say(console, f"  {found.place(each)}: {each.text}")
        if len(findings) > SHOWN:
            _say(console, f"  and {len(findings) - SHOWN:,} more (--json has all)")
    warnings = len(found.all) - found.errors
    _say(console, f"{found.errors:,} errors, {warnings:,} warnings")


def _say(console: "Console", line: str) -> None:
    console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


if TYPE_CHECKING:
    from ..hygiene.leakage_report import LeakageReport


_BEGIN = b'{\n  "clean": '
"""How every result begins, as `_write` writes it."""


class LeakageError(ValueError):
    """A comparison that cannot be made as asked."""


def leakage(
    train: Annotated[Path, typer.Argument(help="Manifest that is trained on.", show_default=False)],
    test: Annotated[list[Path], typer.Argument(help="Held-out manifests.", show_default=False)],
    images: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of the images: one for all manifests, or MANIFEST=DIR for each.",
            show_default="compare paths alone",
        ),
    ] = None,
    distance: Annotated[
        int, typer.Option(min=0, max=96, help="Near-same images differ in so many of 256 bits.")
    ] = 16,
    keep: Annotated[
        Path | None,
        typer.Option(help="File of fingerprints: what is in it is not decoded again."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes.", show_default="the CPUs, at most 8")
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Also write everything to this file.")
    ] = None,
) -> None:
    """Say what a training manifest shares with held-out ones; exit code 1 if anything.

    Same image, question and answer; same image file; same pixels; near-same
    image; same patient or study. Exit code 1 also if an image could not be
    compared. Questions, answers and reports are never printed.
    """
    from rich.console import Console

    if as_json is not None:
        refuse_to_replace(as_json, {"a manifest": [train, *test], "--keep": [keep] if keep else []})
    kept = f"; fingerprints in {keep} stay" if keep else ""
    with stopping(f"stopped{kept}; run the same command again to go on"):
        report = _compare(train, test, images or [], distance, keep, workers)
    if as_json is not None:
        _write(as_json, report)
    from ..hygiene.leakage_report import print_report

    print_report(report, Console())
    if not report.clean:
        raise typer.Exit(FAILED)


def refuse_to_replace(path: Path, inputs: Mapping[str, list[Path]]) -> None:
    """Let `--json` replace a result of this command, and nothing else.

    Raises:
        LeakageError: the file is one of the inputs, by whatever name, or another one's.
    """
    for name, files in inputs.items():
        for file in files:
            same = path.samefile(file) if path.exists() and file.exists() else False
            if same or path.absolute() == file.absolute():
                raise LeakageError(f"--json {path} is {name} of this command; name a new file")
    if path.is_dir():
        raise LeakageError(f"--json {path} is a folder; name a file in it")
    if path.is_file():
        with path.open("rb") as file_there:
            head = file_there.read(len(_BEGIN))
        if head and head != _BEGIN:
            raise LeakageError(
                f"--json {path} is there and no result of `data leakage`; name a new file"
            )


def _write(path: Path, report: "LeakageReport") -> None:
    import json

    from ...runtime.files import make_folder, write_durably

    make_folder(path.parent)
    write_durably(path, json.dumps(report.to_json(), indent=2).encode() + b"\n")


def _compare(
    train: Path,
    tests: list[Path],
    images: list[str],
    distance: int,
    keep: Path | None,
    workers: int | None,
) -> "LeakageReport":
    from ...runtime.processes import default_workers
    from ...runtime.progress import ConsoleProgress
    from ..hygiene.fingerprints import fingerprint_file, read_contents
    from ..hygiene.leakage import find_leaks, read_side
    from ..hygiene.leakage_report import Comparison, LeakageReport

    roots = image_folders([train, *tests], images)
    here, *others = (read_side(path, roots[path]) for path in (train, *tests))
    count = default_workers() if workers is None else workers
    progress = ConsoleProgress()
    with fingerprint_file(keep) as kept:
        found = read_contents([here, *others], count, progress, kept)
    prints = found.fingerprints
    return LeakageReport(
        train=here,
        comparisons=[
            Comparison(test=other, leaks=find_leaks(here, other, prints, distance, progress))
            for other in others
        ],
        unreadable=found.unreadable,
        plain=sum(each.plain for each in prints.values()),
        images=len(prints),
        distance=distance,
    )


def image_folders(manifests: list[Path], given: list[str]) -> dict[Path, Path | None]:
    """Return the folder of each manifest's images, None where none was given.

    Raises:
        LeakageError: a folder is none, two are given for one manifest, or some manifests have one
            and others have not.
    """
    found: dict[Path, Path | None] = dict.fromkeys(manifests)
    for words in given:
        name, equals, folder = words.partition("=")
        own = bool(equals) and Path(name) in found
        for manifest in [Path(name)] if own else found:
            if found[manifest] is not None:
                raise LeakageError(
                    f"--images {words}: {manifest} has a folder already; give one folder for all, "
                    "or MANIFEST=DIR once for each, with the manifest spelt as before"
                )
            found[manifest] = Path(folder if own else words)
    for manifest, root in found.items():
        if root is None and given:
            raise LeakageError(f"--images lacks a folder for {manifest}: give {manifest}=DIR too")
        if root is not None and not root.is_dir():
            raise LeakageError(f"--images: {root} is no folder")
    return found
