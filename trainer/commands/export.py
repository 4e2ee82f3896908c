"""`medalign export`."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ...runtime import arguments as args


class Dtype(StrEnum):
    """Type of the exported weights."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


def _no_checkpoint(name: str) -> str:
    return "" if re.fullmatch(r"last|best|step-\d+", name) else "is not step-N, last or best"


def export(
    run: Annotated[Path, args.argument("Run folder.", args.no_run)],
    out: args.OutFolder,
    checkpoint: Annotated[
        str | None,
        args.option(
            "Checkpoint to export.",
            problem=_no_checkpoint,
            metavar="step-N|last|best",
            show_default="finished adapter, else newest",
        ),
    ] = None,
    student: args.RunStudent = None,
    manifest: args.RunManifest = None,
    images: args.RunImages = None,
    dtype: Annotated[
        Dtype, args.option("Type of the weights; auto keeps fp32 and makes 16 bits bf16.")
    ] = Dtype.auto,
    threshold: Annotated[
        float | None,
        args.option(
            "Mean KL, in nats a token, that merging may cost at most.",
            min=0.0,
            show_default="1e-7 in fp32, 2e-2 in bf16",
        ),
    ] = None,
    images_checked: Annotated[
        int, args.option("Conversations to compare the models on; 0 checks nothing.", min=0)
    ] = 4,
    overwrite: args.Overwrite = False,
) -> None:
    """Write a run's model as a folder that transformers loads without medalign.

    LoRA is merged. A trained rotation comes with its own code: load with
    trust_remote_code=True.
    """
    from ..machine import quiet_libraries

    quiet_libraries()
    from ..export.export import Wish
    from ..export.export import export as run_export

    wish = Wish(
        checkpoint=checkpoint,
        student=student,
        manifest=manifest,
        images=images,
        dtype=dtype.value,
        threshold=threshold,
        images_checked=images_checked,
        overwrite=overwrite,
    )
    done = run_export(run, out, wish, typer.echo)
    if done.layer is None:
        typer.echo(f"export   {out}: a plain Llava folder, without code of its own")
    else:
        typer.echo(f"export   {out}: load it with trust_remote_code=True")
