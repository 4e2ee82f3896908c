"""`medalign doctor`."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from ..preflight.doctor import Examination

_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    manifest: Annotated[Path | None, typer.Argument(help="Manifest to look at.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of its images.")] = None,
    cache: Annotated[str | None, typer.Option(help="Folder or URL of a cache.")] = None,
    student: Annotated[Path | None, typer.Option(help="Folder of a Hugging Face Llava.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A YAML file, or a shipped name.")] = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Images to decode and compare, evenly spread.")
    ] = 32,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Decode and compare every image, and tokenise every conversation."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what would fail, before anything is spent.

    Looks at this machine and at whatever is given; exit code 1 when a check
    failed.
    """
    from ..machine import quiet_libraries

    quiet_libraries()
    from ...pipeline.hygiene.finding import worst
    from ..preflight.doctor import Examination, Request

    with tempfile.TemporaryDirectory(prefix="medalign-doctor-") as scratch:
        request = Request(
            manifest=manifest,
            images=images,
            cache=cache,
            student=student,
            recipe=recipe,
            sample=sample,
            everything=everything,
        )
        found = Examination(request, Path(scratch))
        found.run()
        if as_json:
            typer.echo(json.dumps(_json(found), indent=2))
        else:
            _print(found)
    if worst(found.checks) == "failed":
        raise typer.Exit(1)


def _json(found: "Examination") -> dict[str, Any]:
    from dataclasses import asdict

    from ...pipeline.hygiene.finding import worst
    from ..preflight.preview import pieces

    encoder = None if found.student is None else found.student.encoder
    return {
        "status": worst(found.checks),
        "checks": [asdict(check) for check in found.checks],
        "previews": []
        if encoder is None
        else [
            {"id": record, "pieces": [asdict(piece) for piece in pieces(encoded, encoder)]}
            for record, encoded in found.previews
        ],
    }


def _print(found: "Examination") -> None:
    from rich.console import Console
    from rich.text import Text

    from ..preflight.preview import in_colour, legend

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    width = max(len(check.name) for check in found.checks)
    for check in found.checks:
        advice = f"; {check.advice}" if check.advice else ""
        status = (f"{check.status:<7}", _STYLES[check.status])
        console.print(Text.assemble(status, f"  {check.name:<{width}}  {check.text}{advice}"))
        for detail in check.details:
            console.print(f"{'':{width + 11}}{detail}", markup=False)
    if found.student is not None and found.previews:
        console.print(legend())
        for record, encoded in found.previews:
            console.print(in_colour(record, encoded, found.student.encoder))
