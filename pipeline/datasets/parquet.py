"""Read the Parquet files of Hugging Face's image data sets, and write their images out.

A row is `image` {bytes, path}, `question`, `answer`; nothing else is known about it. Rows are
streamed, and the bytes of an image are written once, as they are, to a file named after them.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ...runtime.files import Draft, sha256_file
from .definition import SPLITS, DataSetError, Item, Layout, LeftOut, Sample, Source, Split, files_of
from .formats import as_text, yes_no_type

_SPLITS: Final[dict[str, Split]] = {"train": "train", "validation": "val", "test": "test"}
_SHARD: Final = re.compile(r"(?P<split>[a-z]+)-(?P<number>\d{5})-of-(?P<count>\d{5})\b")
_COLUMNS: Final = ("image", "question", "answer")
_ROWS_AT_ONCE: Final = 64
_POINTER: Final = b"version https://git-lfs"
_NAMED_ENDING: Final = re.compile(r"\.([a-z0-9]{1,5})$")
_ENDINGS: Final = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"RIFF", "webp"),
)


def parquet_layouts(names: Sequence[str]) -> tuple[Layout, Layout]:
    """Return the layouts of a download from Hugging Face: its folder, or its folder `data`.

    Args:
        names: the splits as the files have them ("train", "validation", "test").
    """
    return (
        Layout(
            name="Hugging Face Parquet",
            files=tuple(f"data/{name}-*.parquet" for name in names),
            images=None,
        ),
        Layout(
            name="Hugging Face Parquet, folder data",
            files=tuple(f"{name}-*.parquet" for name in names),
            images=None,
        ),
    )


def read_parquet(source: Source) -> Iterator[Item]:
    """Yield the rows of all files, split by split; images go to `source.images`.

    Raises:
        DataSetError: a shard is missing or cannot be read, or pyarrow is not installed.
        OSError: an image cannot be written.
    """
    files = files_of(source.root, source.layout)
    _refuse_strangers(files)
    shards = _shards(files)
    tables = [(split, path, _open(path)) for split in SPLITS for path in shards.get(split, ())]
    rows, images = sum(table.metadata.num_rows for _, _, table in tables), _Images(source.images)
    with source.progress.stage("reading", total=rows):
        for split, path, table in tables:
            for number, row in enumerate(_rows(path, table), start=1):
                yield _sample(row, f"{path.name} row {number}", split, images)
                source.progress.advance(1)


def _refuse_strangers(files: Sequence[Path]) -> None:
    """Refuse a split that the set does not have: all sets in this form look alike inside."""
    strangers = sorted(set(files[0].parent.glob("[!.]*.parquet")) - set(files))
    if strangers:
        raise DataSetError(
            f"{strangers[0]}: is no file of this data set; is the folder that of another one?"
        )


def _shards(paths: Sequence[Path]) -> dict[Split, list[Path]]:
    """Return the files of each split, certain that none is missing."""
    shards: dict[Split, dict[int, Path]] = defaultdict(dict)
    counts: dict[Split, int] = {}
    for path in paths:
        named = _SHARD.match(path.name)
        if named is None:
            raise DataSetError(f"{path}: must be named like train-00000-of-00001.parquet")
        split, number = _SPLITS[named["split"]], int(named["number"])
        count = int(named["count"])
        if number in shards[split] or counts.setdefault(split, count) != count:
            raise DataSetError(
                f"{path}: does not belong to the other files of its split; keep the files of one "
                "download only"
            )
        shards[split][number] = path
    for split, numbered in shards.items():
        if missing := sorted(set(range(counts[split])) - numbered.keys()):
            first = next(iter(numbered.values()))
            raise DataSetError(
                f"{first.parent}: file {missing[0]:05d} of {counts[split]:05d} of {split} is "
                "missing; finish the download"
            )
    return {split: [numbered[n] for n in sorted(numbered)] for split, numbered in shards.items()}


def _open(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataSetError(
            f"{path}: reading Parquet needs pyarrow; pip install 'medalign[parquet]'"
        ) from None
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise DataSetError(f"{path}: is a Git LFS pointer, not the file; run `git lfs pull`")
    try:
        table = parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataSetError(f"{path}: {_why(error)}") from None
    names = table.schema_arrow.names
    if missing := [name for name in _COLUMNS if name not in names]:
        raise DataSetError(
            f"{path}: has no column {', '.join(missing)}, only {', '.join(names)}; is this the "
            "set's own file?"
        )
    return table


def _rows(path: Path, table: Any) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of a file; None for one whose text is not UTF-8."""
    import pyarrow

    batches = table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(_COLUMNS))
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataSetError(f"{path}: {_why(error)}") from None
        if batch is None:
            return
        for index in range(batch.num_rows):
            try:  # row by row: one that is broken would take its batch along
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def _why(error: Exception) -> str:
    reason = " ".join(str(error).split()).partition(".")[0]
    return f"cannot be read as Parquet ({reason.lower()}); download it again"


def _sample(row: dict[str, Any] | None, label: str, split: Split, images: "_Images") -> Item:
    if row is None:
        return LeftOut(where=label, reason="its text is not UTF-8")
    image, answer = row["image"], as_text(row["answer"])
    data = image.get("bytes") if isinstance(image, dict) else None
    if not data or not isinstance(data, bytes):
        return LeftOut(where=label, reason="the file does not hold its image")
    return Sample(
        where=label,
        split=split,
        images=(images.write(data, as_text(image.get("path"))),),
        question=as_text(row["question"]),
        answer=answer,
        answer_type=yes_no_type(answer),
    )


class _Images:
    """The folder that images are written to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole = set[str]()

    def write(self, data: bytes, named: str) -> str:
        """Write an image, unless it is there and whole; return its path in the folder."""
        digest = hashlib.sha256(data).hexdigest()
        relative = f"{digest[:2]}/{digest}.{_ending(data, named)}"
        path = self._folder / relative
        if relative not in self._whole and not (path.is_file() and sha256_file(path) == digest):
            path.parent.mkdir(parents=True, exist_ok=True)
            with Draft(path) as draft:
                draft.write(data)
                draft.place()
        self._whole.add(relative)
        return relative


def _ending(data: bytes, named: str) -> str:
    for head, ending in _ENDINGS:
        if data.startswith(head):
            return ending
    ending_of_name = _NAMED_ENDING.search(named.lower())
    return ending_of_name[1] if ending_of_name else "img"
