"""What earlier runs left in an output folder and nobody needs: drafts of killed runs, old images.

Only names that `data prepare` gives are touched. `images` may be a link to somebody's image
folder; a link is never entered.
"""

import contextlib
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final

from .images_link import LINK
from .outputs import is_held

_DRAFT: Final = re.compile(r"(?:(?:train|val|test)\.jsonl|report\.json)\.\d+\.partial")
_LINK_DRAFT: Final = re.compile(rf"{LINK}\.\d+\.partial")
_IMAGE: Final = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,5}")
_IMAGE_DRAFT: Final = re.compile(rf"{_IMAGE.pattern}\.\d+\.partial")


def remove_drafts(out: Path) -> bool:
    """Remove drafts that no living run holds; return whether a manifest's was among them."""
    found = False
    for path in list(out.iterdir()):
        if path.is_symlink():
            if _LINK_DRAFT.fullmatch(path.name):
                path.unlink(missing_ok=True)
        elif _DRAFT.fullmatch(path.name) and not is_held(path):
            path.unlink(missing_ok=True)
            found = True
    for path in list(_in_images(out, _IMAGE_DRAFT)):
        if not is_held(path):
            path.unlink(missing_ok=True)
    return found


def remove_images(out: Path, kept: Container[str]) -> None:
    """Remove images that a run wrote out of Parquet files and no manifest names any more.

    Args:
        out: the output folder.
        kept: paths below `out/images` that stay.
    """
    for path in list(_in_images(out, _IMAGE)):
        if path.relative_to(out / LINK).as_posix() not in kept:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty yet, or never
                path.parent.rmdir()
                path.parent.parent.rmdir()


def _in_images(out: Path, named: re.Pattern[str]) -> Iterator[Path]:
    images = out / LINK
    if images.is_symlink() or not images.is_dir():
        return
    for path in images.glob("[0-9a-f][0-9a-f]/*"):
        if named.fullmatch(path.name) and path.name[:2] == path.parent.name:
            yield path
