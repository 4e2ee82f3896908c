"""`medalign data leakage`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..command_options import FAILED
from .stopping import stopping

if TYPE_CHECKING:
    from .leakage_report import LeakageReport


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
    from .leakage_report import print_report

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

    from .outputs import Draft

    path.parent.mkdir(parents=True, exist_ok=True)
    with Draft(path) as draft:
        draft.write(json.dumps(report.to_json(), indent=2).encode() + b"\n")
        draft.place()


def _compare(
    train: Path,
    tests: list[Path],
    images: list[str],
    distance: int,
    keep: Path | None,
    workers: int | None,
) -> "LeakageReport":
    from ..progress import ConsoleProgress
    from ..workers import default_workers
    from .fingerprint_file import fingerprint_file
    from .image_contents import read_contents
    from .leakage import find_leaks
    from .leakage_report import Comparison, LeakageReport
    from .side import read_side

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
