"""`medalign data prepare`."""

from pathlib import Path
from typing import Annotated

import typer

from ..command_options import FAILED, INTERRUPTED

_NAMES = "slake, vqa-rad, pathvqa, omnimedvqa, iu-xray-vqa, iu-xray-report, mimic-cxr-report"


def prepare_command(
    name: Annotated[str, typer.Argument(help=f"{_NAMES}.", show_default=False)],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="Folder of the downloaded set, unpacked.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images.", show_default="where the set has them"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the cut, where the set has no splits.")] = 0,
    val_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of val in a cut.", show_default="the set's"),
    ] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of test in a cut.", show_default="the set's"),
    ] = None,
    choose: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="A choice of the set, as language=all.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another run left in --out.")
    ] = False,
) -> None:
    """Turn a downloaded data set into manifests, with a report of what was found.

    No image is copied, except out of Parquet files. Run the same command again
    after any interruption.
    """
    from rich.console import Console

    from ..interrupt import interruptible
    from ..progress import ConsoleProgress
    from .dataset import DataSetError
    from .prepare import Asked, prepare
    from .registry import find_data_set
    from .table import show

    data_set = find_data_set(name)
    choices = dict[str, str]()
    for word in choose or ():
        key, equals, value = word.partition("=")
        if not equals:
            raise DataSetError(f"--choose {word!r} must be KEY=VALUE")
        if key in choices:
            raise DataSetError(f"--choose {key} is given more than once")
        choices[key] = value
    asked = Asked(
        images=images,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        choices=choices,
        overwrite=overwrite,
    )
    try:
        with interruptible():
            prepared = prepare(data_set, source, out, asked, ConsoleProgress(unit="items"))
    except KeyboardInterrupt:
        typer.echo(f"stopped; whole files in {out} stay, run the same command again", err=True)
        raise typer.Exit(INTERRUPTED) from None
    show(prepared, Console())
    if prepared.problems:
        raise typer.Exit(FAILED)
