"""Find out in which form a data set lies in a folder."""

from collections.abc import Sequence
from pathlib import Path

from .dataset import DataSet, DataSetError, Layout


def find_layout(data_set: DataSet, folder: Path) -> tuple[Path, Layout]:
    """Return the set's folder, which is `folder` or lies directly in it, and its layout.

    Raises:
        DataSetError: nothing known is there, or several things are.
    """
    if not folder.is_dir():
        kind = "is a file, name the folder" if folder.exists() else "is not there"
        raise DataSetError(f"{folder}: {kind}; it should be the folder of {data_set.title}")
    for level in ([folder], _folders_in(folder)):
        found = [
            (root, layout)
            for root in level
            for layout in data_set.layouts
            if not _missing(root, layout)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            listed = "".join(f"\n  {root}: {layout.name}" for root, layout in found)
            raise DataSetError(
                f"{folder}: holds {data_set.title} more than once; name one folder, or move the "
                f"files of one form into a folder of their own{listed}"
            )
    raise DataSetError(_nothing_found(data_set, folder))


def files_of(root: Path, layout: Layout) -> list[Path]:
    """Return the files that make up a layout, sorted by their path."""
    return sorted({path for pattern in layout.files for path in _matches(root, pattern)})


def image_folder(data_set: DataSet, root: Path, layout: Layout, asked: Path | None) -> Path | None:
    """Return the folder that holds the images; None where they are inside the set's files.

    Raises:
        DataSetError: the folder is not there, or was asked for where there is none.
    """
    if layout.images is None:
        if asked is not None:
            raise DataSetError(
                f"{root}: {layout.name}: the images are inside these files and are written out; "
                "leave --images away"
            )
        return None
    folder = root / layout.images if asked is None else asked
    if folder.is_dir():
        return folder
    archive = root / layout.archive if layout.archive else None
    if asked is None and archive is not None and archive.is_file():
        raise DataSetError(f"{archive}: is still packed; unpack it into {root} and run again")
    raise DataSetError(
        f"{folder}: no such folder; the images of {data_set.title} should lie there, "
        "or pass --images with the folder that holds them"
    )


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _matches(root: Path, pattern: str) -> Sequence[Path]:
    # macOS puts a file ._NAME beside NAME on other file systems.
    return [path for path in root.glob(pattern) if path.is_file() and path.name[0] != "."]


def _missing(root: Path, layout: Layout) -> list[str]:
    return [pattern for pattern in layout.files if not _matches(root, pattern)]


def _nothing_found(data_set: DataSet, folder: Path) -> str:
    lines = [f"{folder}: no known form of {data_set.title} is there or in a folder in it"]
    for layout in data_set.layouts:
        missing = _missing(folder, layout)
        looked = [f"{name} (missing)" if name in missing else name for name in layout.files]
        lines.append(f"  {layout.name}: looked for {', '.join(looked)}")
    return "\n".join(lines)
