"""Command line of `medalign eval generate`."""

import enum
from pathlib import Path
from typing import Annotated

import typer


class DecoderChoice(enum.StrEnum):
    """How the next token is chosen."""

    greedy = "greedy"
    beam = "beam"
    nucleus = "nucleus"


def generate(
    source: Annotated[
        Path, typer.Argument(help="Run folder, adapter folder, or a student's folder.")
    ],
    manifest: Annotated[Path, typer.Argument(help="Manifest of questions.")],
    images: Annotated[Path, typer.Option(help="Folder of its images.")],
    out: Annotated[Path, typer.Option(help="Predictions file to write, JSON Lines.")],
    decoder: Annotated[DecoderChoice, typer.Option(help="Greedy, beam or nucleus.")] = (
        DecoderChoice.greedy
    ),
    student: Annotated[
        Path | None, typer.Option(help="Where the run's student is, if it moved.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    beams: Annotated[int, typer.Option(min=1, help="Hypotheses of beam search.")] = 5,
    top_p: Annotated[float, typer.Option(help="Probability mass of nucleus sampling.")] = 0.9,
    temperature: Annotated[float, typer.Option(help="Of nucleus sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of nucleus sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
) -> None:
    """Answer the first question of every record; run again to go on after an interruption.

    A sampled answer depends on the seed and its own record alone, not on the batch.
    """
    from ..trainer.quiet import quiet_libraries

    quiet_libraries()
    from .answer_bar import answer_bar
    from .decoding import Decoder
    from .generate import generate as answer
    from .source import find_source

    how = Decoder(
        name=decoder.value,
        max_new_tokens=max_new_tokens,
        beams=beams,
        top_p=top_p,
        temperature=temperature,
        seed=seed,
    )
    found = find_source(source, student)
    if found.unfinished:
        typer.echo(found.unfinished, err=True)
    with answer_bar() as bar:
        done = answer(
            found,
            manifest,
            images,
            out,
            how,
            batch_size=batch_size,
            workers=workers,
            progress=bar,
        )
    typer.echo(f"answers  {out}: {done.answered} new, {done.reused} from before")
    for record, reason in done.unreadable[:10]:
        typer.echo(f"no answer to {record!r}: {reason}", err=True)
    if done.unreadable:
        typer.echo(
            f"{len(done.unreadable)} of {done.records} records could not be read; "
            "score the others with --allow-missing",
            err=True,
        )
        raise typer.Exit(1)
