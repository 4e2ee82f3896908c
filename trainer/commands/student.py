"""`medalign student`."""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ...runtime import arguments as args

student = typer.Typer(
    no_args_is_help=True, help="Convert original checkpoints, and check a student's folder."
)


class Family(StrEnum):
    """Model families of original checkpoints."""

    llava_med = "llava-med"
    huatuo_vision = "huatuo-vision"


class Dtype(StrEnum):
    """Type of the converted weights."""

    keep = "keep"
    bf16 = "bf16"
    fp16 = "fp16"


class TowerWeights(StrEnum):
    """Where the vision tower's weights come from."""

    checkpoint = "checkpoint"
    folder = "folder"


def _not_finite(text: str) -> str:
    # click's own bounds let nan pass
    return "" if math.isfinite(float(text)) else "is no number of gigabytes"


@student.command("convert")
def convert_command(
    source: Annotated[
        Path, args.argument("Folder of the original checkpoint.", args.no_folder, metavar="SRC")
    ],
    family: Annotated[Family, args.option("Model family of the checkpoint.")],
    out: args.OutFolder,
    vision_tower: Annotated[
        Path | None,
        args.option(
            "CLIP folder, for a checkpoint without a vision tower.", problem=args.no_folder
        ),
    ] = None,
    tower_weights: Annotated[
        TowerWeights | None,
        args.option("Whose weights to take if checkpoint and --vision-tower both have a tower."),
    ] = None,
    dtype: Annotated[
        Dtype, args.option("Type of the weights; keep leaves every tensor as it is.")
    ] = Dtype.keep,
    shard_gb: Annotated[
        float, args.option("Gigabytes of a weight file at most.", problem=_not_finite, min=0.0001)
    ] = 5.0,
) -> None:
    """Turn an original checkpoint into a Hugging Face Llava folder that `medalign train` takes.

    After an interruption, run the same command again. Every tensor is used once
    or listed with the reason in OUT/conversion.json.
    """
    if tower_weights is TowerWeights.folder and vision_tower is None:
        raise args.ArgumentError("--tower-weights folder needs --vision-tower DIR; give both")
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
    typer.echo(f"student       {out}; check it with: medalign student check {out}")


@student.command("check")
def check_command(
    folder: Annotated[
        Path, args.argument("Folder of a Hugging Face student.", args.no_student, metavar="DIR")
    ],
    forward: Annotated[
        bool, args.flag("Load the model as well, and run it on a small image.")
    ] = False,
    as_json: args.Json = False,
) -> None:
    """Check that a student's folder is whole and fits together; exit 1 if not.

    Weights are read tensor by tensor; the model never lies in memory as a
    whole.
    """
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
