"""Where the prepared data sets of the tasks lie: environment variables say it."""

import os
from pathlib import Path
from typing import Final

DATA: Final = "MEDALIGN_DATA"
"""Folder with one folder per data set, each as `medalign data prepare --out` wrote it."""

TASKS: Final = Path(__file__).parent / "tasks"
"""Folder that lmms-eval is given as `--include_path`."""


class HarnessError(ValueError):
    """A task or the model cannot do what lmms-eval was told."""


def variable_of(name: str) -> str:
    """Variable that names the folder of one data set, if it does not lie with the others."""
    return f"MEDALIGN_{name.upper().replace('-', '_')}"


def find_set(name: str) -> tuple[Path, Path]:
    """Return manifest and image folder of a data set, by its name in `data prepare`.

    `MEDALIGN_SLAKE` names the folder of `slake`, else it is `slake` in `MEDALIGN_DATA`; images
    are in its `images`, or where `MEDALIGN_SLAKE_IMAGES` says.

    Raises:
        HarnessError: no variable is set, or manifest or images are not there.
    """
    own, every = os.environ.get(variable_of(name)), os.environ.get(DATA)
    if not own and not every:
        raise HarnessError(
            f"neither {variable_of(name)} nor {DATA} is set: run `medalign data prepare {name} "
            f"SRC --out DIR/{name}` and set {DATA} to DIR"
        )
    folder = Path(own) if own else Path(every or "") / name
    manifest = folder / "test.jsonl"
    if not manifest.is_file():
        raise HarnessError(
            f"{manifest} does not exist; `medalign data prepare {name} SRC --out {folder}` "
            f"writes it, or set {variable_of(name)}"
        )
    images = Path(os.environ.get(f"{variable_of(name)}_IMAGES") or folder / "images")
    if not images.is_dir():
        raise HarnessError(f"{images} is no folder; set {variable_of(name)}_IMAGES")
    return manifest.absolute(), images.absolute()
