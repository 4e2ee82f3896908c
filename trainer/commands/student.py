"""`medalign student`."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

student = typer.Typer(
    no_args_is_help=True, help="Convert the paper's original checkpoints; check a student's folder."
)


class Family(StrEnum):
    """Of original checkpoints."""

    llava_med = "llava-med"
    huatuo_vision = "huatuo-vision"


class Dtype(StrEnum):
    """Of the converted weights."""

    keep = "keep"
    bf16 = "bf16"
    fp16 = "fp16"


class TowerWeights(StrEnum):
    """Whose vision tower counts."""

    checkpoint = "checkpoint"
    folder = "folder"


def _finite(value: float) -> float:
    # click's own bounds let nan pass
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number of gigabytes")
    return value


@student.command("convert")
def convert_command(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of the original checkpoint.")
    ],
    family: Annotated[Family, typer.Option(help="What it is.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    vision_tower: Annotated[
        Path | None,
        typer.Option(help="CLIP folder, for a checkpoint without a vision tower of its own."),
    ] = None,
    tower_weights: Annotated[
        TowerWeights | None,
        typer.Option(help="Whose tower counts if the checkpoint has one and --vision-tower too."),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Of the weights; keep leaves every tensor as it is.")
    ] = Dtype.keep,
    shard_gb: Annotated[
        float, typer.Option(min=0.0001, callback=_finite, help="Most gigabytes of a weight file.")
    ] = 5.0,
) -> None:
    """Turn an original checkpoint into a Hugging Face Llava folder that `medalign train` takes.

    Run the same command again to go on after any interruption. Every tensor is
    used once or listed with the reason in OUT/conversion.json.
    """
    from ..machine import quiet_libraries

    quiet_libraries()
    from ...runtime.progress import ConsoleProgress
    from ..convert.checkpoint_families import ORIGINALS
    from ..convert.conversion_report import rows_of
    from ..convert.convert import Wish, convert

    wish = Wish(
        vision_tower=vision_tower,
        tower_weights=None if tower_weights is None else tower_weights.value,
        dtype=dtype.value,
        shard_bytes=int(shard_gb * 1e9),
    )
    done = convert(source, out, ORIGINALS[family.value], wish, ConsoleProgress(unit="bytes").stage)
    if done.already:
        typer.echo(f"already converted: {out}")
        return
    if done.reused:
        typer.echo(
            f"{done.reused} of {len(done.report['weights'])} weight files were whole already"
        )
    for what, value in rows_of(done.report):
        typer.echo(f"{what:<12}  {value}")
    typer.echo(f"student       {out}; look at it with: medalign student check {out}")


@student.command("check")
def check_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a Hugging Face Llava.")],
    forward: Annotated[
        bool, typer.Option(help="Also load the model and let it look at a small image.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a student's folder is whole and fits together; exit code 1 when it does not.

    Weights are read tensor by tensor, the model is never held whole.
    """
    import json

    from ..machine import quiet_libraries

    quiet_libraries()
    from ...pipeline.hygiene.finding import lines, worst
    from ...runtime.progress import ConsoleProgress
    from ..preflight.student_check import check_student

    checks = check_student(folder, ConsoleProgress(unit="bytes").stage, forward=forward)
    if as_json:
        from dataclasses import asdict

        values = {"status": worst(checks), "checks": [asdict(check) for check in checks]}
        typer.echo(json.dumps(values, indent=2))
    else:
        for line in lines(checks):
            typer.echo(line)
    if worst(checks) == "failed":
        raise typer.Exit(1)
