"""`medalign export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Of the exported weights."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="step-N|last|best",
            help="Which checkpoint.",
            show_default="finished adapter, else newest",
        ),
    ] = None,
    student: Annotated[
        Path | None, typer.Option(help="Folder of the base model, if it moved.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="The run's manifest, if it moved.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of its images, if it moved.")] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Of the weights; auto keeps fp32 and makes 16 bits bf16.")
    ] = Dtype.auto,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Most mean KL, in nats a token, that merging may cost.",
            show_default="1e-7 in fp32, 2e-2 in bf16",
        ),
    ] = None,
    images_checked: Annotated[
        int, typer.Option(min=0, help="Conversations to compare the models on; 0 checks nothing.")
    ] = 4,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier export in --out.")] = False,
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
