"""Command line of `medalign bench`."""

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(no_args_is_help=True, help="Measure what answering costs on this machine.")


@bench.callback()
def _several() -> None:
    """Measure what answering costs on this machine."""


@bench.command()
def inference(
    student: Annotated[Path, typer.Argument(help="Folder of the student.")],
    run: Annotated[
        Path | None, typer.Argument(help="Run or adapter folder of that student.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="Image to ask about; repeatable.", show_default="the packaged sample's"),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help="Asked about each.", show_default="to describe the findings"),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Length of every answer.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Counted answers of each variant.")] = 10,
    warmups: Annotated[int, typer.Option(min=0, help="Answers before, not counted.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print every repetition as JSON.")] = False,
) -> None:
    """Time to the first token, per further token, and peak memory, with and without rotation.

    One question at a time, greedy, as `generate` streams it. Both variants of
    the same weights take turns; tables show the median and, in brackets, the
    quartiles. Fewer than 5 repeats have none: there the brackets hold the
    least and the most.
    """
    from ...trainer.machine import quiet_libraries

    quiet_libraries()
    from ..bench.cost_table import as_json, as_table
    from ..bench.inference_cost import QUESTION, BenchPlan, bench_inference

    wanted = BenchPlan(
        images=image or (),
        question=question or QUESTION,
        tokens=tokens,
        repeats=repeats,
        warmups=warmups,
    )
    report = bench_inference(student, run, wanted, lambda text: typer.echo(text, err=True))
    if json:
        typer.echo(json_format.dumps(as_json(report), indent=2))
    else:
        typer.echo(as_table(report))
