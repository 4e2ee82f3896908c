"""`medalign eval generate`."""

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ...runtime import arguments as args

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
    """Where a preset's settings come from."""

    paper = "paper"
    medalign_llava_med = "medalign-llava-med"
    medalign_huatuo = "medalign-huatuo"


_BEAMS: Final = (DecoderChoice.beam, DecoderChoice.opera)
_DRAWING: Final = tuple(
    name
    for name in DecoderChoice
    if name not in (DecoderChoice.greedy, DecoderChoice.dola, *_BEAMS)
)
DECODERS_OF: Final = {"beams": _BEAMS, "top_p": _DRAWING, "temperature": _DRAWING}
"""Which decoders have a setting that is an option too; the decoders themselves import torch."""


def generate(
    source: Annotated[
        Path, args.argument("Run folder, adapter folder, or a student's folder.", args.no_source)
    ],
    manifest: args.Manifest,
    images: args.Images,
    out: Annotated[Path, args.out_file("Predictions file to write, JSON Lines.")],
    decoder: Annotated[DecoderChoice, args.option("How the next token is chosen.")] = (
        DecoderChoice.greedy
    ),
    preset: Annotated[
        PresetChoice | None,
        args.option("Settings of the method's paper, or those that MedAlign used."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        args.option(
            "A setting of the decoder, see docs/decoders.md; repeatable.",
            "--set",
            problem=args.no_assignment,
            metavar="KEY=VALUE",
        ),
    ] = None,
    student: args.RunStudent = None,
    max_new_tokens: Annotated[
        int | None,
        args.option("Tokens of an answer at most.", min=1, show_default="128, or the preset's"),
    ] = None,
    beams: Annotated[
        int | None,
        args.option("Hypotheses of beam search and OPERA.", min=1, show_default="the decoder's"),
    ] = None,
    top_p: Annotated[
        float | None, args.option("Probability mass to sample from.", show_default="the decoder's")
    ] = None,
    temperature: Annotated[
        float | None,
        args.option("Sampling temperature; 0 is greedy.", show_default="the decoder's"),
    ] = None,
    seed: args.Seed = 0,
    part: Annotated[
        str | None,
        args.option(
            "Answer share I of N; the last one done joins them.",
            problem=args.no_part,
            metavar="I/N",
            show_default="all",
        ),
    ] = None,
    batch_size: Annotated[
        int, args.option("Questions in one pass; OPERA takes them one by one.", min=1)
    ] = 8,
    workers: Annotated[int, args.option("Processes that read images.", min=0)] = 0,
) -> None:
    """Answer the first question of every record; run again to continue after an interruption.

    Sampled answers depend on the seed and the record alone, not on batch, part
    or interruption.
    """
    options = {
        "max_new_tokens": max_new_tokens,
        "beams": beams,
        "top_p": top_p,
        "temperature": temperature,
    }
    values = _merged(options, set_ or (), decoder)
    if out.resolve() == manifest.resolve():
        raise args.ArgumentError(f"--out {out}: would overwrite the manifest; choose another file")
    from ...trainer.machine import quiet_libraries

    quiet_libraries()
    from ...runtime.parts import Part
    from ...runtime.progress import ConsoleProgress
    from ..decoders.presets import make_spec
    from ..generate import generate as answer
    from ..source import find_source

    spec = make_spec(decoder.value, None if preset is None else preset.value, values)
    student_source = find_source(source, student)
    if student_source.unfinished:
        typer.echo(student_source.unfinished, err=True)
    if decoder is DecoderChoice.opera and batch_size > 1:
        typer.echo("opera rewinds each answer by itself: one question at a time", err=True)
    with ConsoleProgress(unit="answers").counting("answering") as progress:
        done = answer(
            student_source,
            manifest,
            images,
            out,
            spec,
            seed=seed,
            part=None if part is None else Part.parse(part),
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
    _report(done, out)


def _merged(
    options: Mapping[str, int | float | None], words: Sequence[str], decoder: DecoderChoice
) -> dict[str, int | float | str]:
    """Merge the options of single settings with `--set`.

    Raises:
        ArgumentError: a setting is given twice, or the decoder has none of that name.
    """
    values: dict[str, int | float | str] = {}
    for name, value in options.items():
        if value is None:
            continue
        if decoder not in DECODERS_OF.get(name, DecoderChoice):
            raise args.ArgumentError(
                f"--{name.replace('_', '-')} is no setting of --decoder {decoder}; it goes with "
                f"{', '.join(DECODERS_OF[name])}"
            )
        values[name] = value
    for word in words:
        key, _, text = word.partition("=")
        key = key.strip()
        if key in values:
            other = f"--{key.replace('_', '-')} and --set" if options.get(key) else "--set"
            raise args.ArgumentError(f"{key} is given twice, by {other}; give it once")
        values[key] = text.strip()
    return values


def _report(done: "Answered", out: Path) -> None:
    """Print how many answers there are; exit 1 when records of this run have none."""
    typer.echo(f"answers  {done.out}: {done.answered} new, {done.reused} from before")
    if done.joined is not None:
        if done.joined.answers is None:
            parts = ", ".join(map(str, done.joined.waiting))
            typer.echo(f"waiting  {out}: for part {parts}")
        else:
            typer.echo(f"joined   {out}: {done.joined.answers} answers of all parts")
    whole = done.joined is not None and done.joined.answers is not None
    lost = done.joined.unreadable if done.joined is not None and whole else done.unreadable
    for record, reason in lost[:10]:
        typer.echo(f"no answer to {record!r}: {reason}", err=True)
    if lost:
        typer.echo(
            f"{len(lost)} records have no answer; score the others with --allow-missing", err=True
        )
        raise typer.Exit(1)
