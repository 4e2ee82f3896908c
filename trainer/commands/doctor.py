"""`medalign doctor`."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ...runtime import arguments as args
from .recipes import RecipeOption

if TYPE_CHECKING:
    from ..preflight.doctor import Examination

_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    manifest: args.SomeManifest = None,
    images: args.RecipeImages = None,
    cache: args.CacheOption = None,
    student: args.RecipeStudent = None,
    recipe: RecipeOption = None,
    sample: Annotated[int, args.option("Images to decode and compare, evenly spread.", min=1)] = 32,
    everything: Annotated[
        bool, args.flag("Decode and compare every image, and tokenise every conversation.", "--all")
    ] = False,
    as_json: args.Json = False,
) -> None:
    """Find what would fail, before anything is spent; exit 1 if a check fails.

    Checks this machine, and whichever of recipe, student, cache, manifest and
    images you name.
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
        examination = Examination(request, Path(scratch))
        examination.run()
        if as_json:
            typer.echo(json.dumps(_json(examination), indent=2))
        else:
            _print(examination)
    if worst(examination.checks) == "failed":
        raise typer.Exit(1)


def _json(examination: "Examination") -> dict[str, Any]:
    from dataclasses import asdict

    from ...pipeline.hygiene.finding import worst
    from ..preflight.preview import pieces

    encoder = None if examination.student is None else examination.student.encoder
    return {
        "status": worst(examination.checks),
        "checks": [asdict(check) for check in examination.checks],
        "previews": []
        if encoder is None
        else [
            {"id": record, "pieces": [asdict(piece) for piece in pieces(encoded, encoder)]}
            for record, encoded in examination.previews
        ],
    }


def _print(examination: "Examination") -> None:
    from rich.console import Console
    from rich.text import Text

    from ..preflight.preview import in_colour, legend

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    width = max(len(check.name) for check in examination.checks)
    for check in examination.checks:
        advice = f"; {check.advice}" if check.advice else ""
        status = (f"{check.status:<7}", _STYLES[check.status])
        console.print(Text.assemble(status, f"  {check.name:<{width}}  {check.text}{advice}"))
        for detail in check.details:
            console.print(f"{'':{width + 11}}{detail}", markup=False)
    if examination.student is not None and examination.previews:
        console.print(legend())
        for record, encoded in examination.previews:
            console.print(in_colour(record, encoded, examination.student.encoder))
