"""Command line of `medalign eval generate`."""

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..generate import Answered


class DecoderChoice(enum.StrEnum):
    """How the next token is chosen."""

    greedy = "greedy"
    beam = "beam"
    nucleus = "nucleus"
    vcd = "vcd"
    dola = "dola"
    opera = "opera"
    avisc = "avisc"
    m3id = "m3id"
    damro = "damro"
    pai = "pai"


class PresetChoice(enum.StrEnum):
    """Whose settings."""

    paper = "paper"
    medalign_llava_med = "medalign-llava-med"
    medalign_huatuo = "medalign-huatuo"


def generate(
    source: Annotated[
        Path, typer.Argument(help="Run folder, adapter folder, or a student's folder.")
    ],
    manifest: Annotated[Path, typer.Argument(help="Manifest of questions.")],
    images: Annotated[Path, typer.Option(help="Folder of its images.")],
    out: Annotated[Path, typer.Option(help="Predictions file to write, JSON Lines.")],
    decoder: Annotated[DecoderChoice, typer.Option(help="How tokens are chosen.")] = (
        DecoderChoice.greedy
    ),
    preset: Annotated[
        PresetChoice | None,
        typer.Option(help="Settings of the method's paper, or those that MedAlign used."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the decoder, see docs/decoders.md; repeatable.",
        ),
    ] = None,
    student: Annotated[
        Path | None, typer.Option(help="Where the run's student is, if it moved.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer, in tokens.", show_default="128, or the preset's"),
    ] = None,
    beams: Annotated[
        int | None, typer.Option(min=1, help="Hypotheses of beam search and OPERA.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Probability mass that is drawn from.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of decoders that draw; 0 takes the most likely token.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of decoders that draw.")] = 0,
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Answer share I of N; the last one done joins them."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions at a time; OPERA takes them one by one.")
    ] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
) -> None:
    """Answer the first question of every record; run again to go on after an interruption.

    What is drawn depends on the seed and the record alone, not on batch, part
    or interruption.
    """
    from ...trainer.machine import quiet_libraries

    quiet_libraries()
    from ...runtime.parts import Part
    from ...runtime.progress import ConsoleProgress
    from ..decoders.presets import make_spec, read_assignments
    from ..generate import generate as answer
    from ..source import find_source

    options = {
        "max_new_tokens": max_new_tokens,
        "beams": beams,
        "top_p": top_p,
        "temperature": temperature,
    }
    values = _together(options, read_assignments(set_ or []))
    spec = make_spec(decoder.value, None if preset is None else preset.value, values)
    share = None if part is None else Part.parse(part)
    found = find_source(source, student)
    if found.unfinished:
        typer.echo(found.unfinished, err=True)
    if decoder is DecoderChoice.opera and batch_size > 1:
        typer.echo("opera rewinds each answer by itself: one question at a time", err=True)
    with ConsoleProgress(unit="answers").counting("answering") as bar:
        done = answer(
            found,
            manifest,
            images,
            out,
            spec,
            seed=seed,
            part=share,
            batch_size=batch_size,
            workers=workers,
            progress=bar,
        )
    _report(done, out)


def _together(
    options: Mapping[str, int | float | None], assigned: Mapping[str, str]
) -> dict[str, int | float | str]:
    """Options of their own and `--set` as one; giving a setting both ways is refused."""
    from ..decoders.settings import DecodingError

    given = {name: value for name, value in options.items() if value is not None}
    if twice := sorted(given.keys() & assigned.keys()):
        option = twice[0].replace("_", "-")
        raise DecodingError(f"{twice[0]} is given twice: --{option} and --set")
    return {**given, **assigned}


def _report(done: "Answered", out: Path) -> None:
    """Say what was answered; exit 1 when records of this run have no answer."""
    typer.echo(f"answers  {done.out}: {done.answered} new, {done.reused} from before")
    if done.joined is not None:
        if done.joined.answers is None:
            rest = ", ".join(map(str, done.joined.waiting))
            typer.echo(f"waiting  {out}: for part {rest}")
        else:
            typer.echo(f"joined   {out}: {done.joined.answers} answers of all parts")
    whole = done.joined is not None and done.joined.answers is not None
    lost = done.joined.unreadable if done.joined is not None and whole else done.unreadable
    for record, reason in lost[:10]:
        typer.echo(f"no answer to {record!r}: {reason}", err=True)
    if lost:
        typer.echo(
            f"{len(lost)} records have no answer; score the others with --allow-missing",
            err=True,
        )
        raise typer.Exit(1)
