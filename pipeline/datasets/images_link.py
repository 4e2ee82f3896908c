"""The images of a prepared set are at `DIR/images`, wherever they lie."""

import os
from pathlib import Path

LINK = "images"
"""Its name in the output folder; images out of Parquet are written into a folder of this name."""


def link_images(out: Path, images: Path) -> Path:
    """Let `out/images` lead to the image folder; return what to pass as `--images`.

    A link that leads elsewhere is replaced. Where something else has that name already, or the
    file system knows no links, the image folder itself is returned.
    """
    link = out / LINK
    if leads(link, images):
        return link
    if link.is_symlink() or not link.exists():
        draft = out / f"{LINK}.{os.getpid()}.partial"
        try:
            draft.symlink_to(images.absolute())
            draft.replace(link)
        except OSError:
            draft.unlink(missing_ok=True)
    return link if leads(link, images) else images


def drop_link(out: Path) -> None:
    """Remove the link, so that images are not written into the folder of another set."""
    if (out / LINK).is_symlink():
        (out / LINK).unlink()


def leads(link: Path, images: Path) -> bool:
    """Return whether a link, or a folder of its name, is the image folder."""
    return link.is_dir() and link.samefile(images)
