"""`medalign bench`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ...runtime import arguments as args

_no_run_or_adapter = args.no_folder_of(run="recipe.yaml", adapter="adapter_config.json")

bench = typer.Typer(no_args_is_help=True, help="Measure what answering costs on this machine.")


@bench.callback()
def _several() -> None:
    """Measure what answering costs on this machine."""


@bench.command()
def inference(
    student: args.Student,
    run: Annotated[
        Path | None, args.argument("Run or adapter folder of that student.", _no_run_or_adapter)
    ] = None,
    image: Annotated[
        list[Path] | None,
        args.option(
            "Image to ask about; repeatable.",
            problem=args.no_file,
            show_default="the packaged sample's",
        ),
    ] = None,
    question: Annotated[
        str | None,
        args.option("Question about each image.", show_default="to describe the findings"),
    ] = None,
    tokens: Annotated[int, args.option("Tokens of every answer.", min=2)] = 32,
    repeats: Annotated[int, args.option("Answers of each variant that count.", min=1)] = 10,
    warmups: Annotated[int, args.option("Answers before these, not counted.", min=0)] = 1,
    as_json: args.Json = False,
) -> None:
    """Measure time and memory of answers, with and without the rotation.

    Time to the first token, time per further token, and peak memory. One
    question at a time, greedy, as `generate` streams it. Both variants of the
    same weights take turns; tables show the median and, in brackets, the
    quartiles. With fewer than 5 repeats the brackets hold the least and the
    most.
    """
    from ...trainer.machine import quiet_libraries

    quiet_libraries()
    from ..bench import cost_table
    from ..bench.inference_cost import QUESTION, BenchPlan, bench_inference

    case = BenchPlan(
        images=image or (),
        question=question or QUESTION,
        tokens=tokens,
        repeats=repeats,
        warmups=warmups,
    )
    report = bench_inference(student, run, case, lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(cost_table.as_json(report), indent=2))
    else:
        typer.echo(cost_table.as_table(report))
