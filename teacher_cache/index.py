"""From a manifest path or a content digest to a row, without a dict of strings.

At 400,000 rows the sorted hashes take 8 MB and milliseconds to load; a dict of the same paths
takes 95 to 229 MB. A path is known by 128 bits of BLAKE2b: the first 64 are searched, the second
64 settle which of equal first halves is meant. Every table is loaded when first used, and its
values are checked against the digest in the group's attributes.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..runtime.files import sha256_bytes
from .attributes import ROOT, Seal
from .commits import ROW_DIGEST_BYTES
from .format.arrays import (
    Array,
    check_metadata,
    group_metadata,
    read_table,
    table_file_bytes,
    table_metadata,
)
from .generations import DIGEST_BYTES, Layout, PlanChain, prefix_of
from .storage.local import Storage
from .storage.untrusted import DamagedError, TeacherCacheError, check_relative, within

Words = npt.NDArray[np.uint64]
INDEX = "index"
_ROW_NUMBERS = ("content_row", "path_hash_row")
_TEXT_ERRORS = "surrogatepass"  # a JSON manifest may hold half a surrogate pair


class RowIndex(Protocol):
    """Where rows are found: tables of a sealed store, or the `PlanChain` of an unsealed one."""

    def path_row(self, path: str) -> int | None:
        """Return the row of a manifest path."""

    def content_row(self, digest: str) -> int | None:
        """Return the row of an image content (SHA-256, hex)."""

    def content_of(self, row: int) -> str:
        """Return the SHA-256 (hex) of the image that `row` was made from."""

    @property
    def paths(self) -> Collection[str]:
        """Every path that has a row, in manifest order."""

    def path_rows(self) -> Array:
        """Return the row of every path, int32, in the order of `paths`."""


@dataclass
class StoredIndex:
    """The index of a sealed store; nothing is read before it is asked for."""

    store: Storage
    seal: Seal
    _tables: dict[str, Array] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": {}}

    @property
    def folder(self) -> str:
        """Where the tables lie; a new seal has a new folder."""
        return index_folder(self.seal.generations)

    def path_row(self, path: str) -> int | None:
        """Return the row of a manifest path."""
        high, low = path_words([path])[:, 0]
        hashes = self._table("path_hash")
        for position in _equal_range(hashes[0], high):
            if hashes[1, position] == low:
                return int(self._table("path_hash_row")[position])
        return None

    def content_row(self, digest: str) -> int | None:
        """Return the row of an image content (SHA-256, hex)."""
        sha256 = bytes.fromhex(digest)
        prefix = np.uint64(int.from_bytes(sha256[:8], "big"))
        for position in _equal_range(self._table("content_prefix"), prefix):
            row = int(self._table("content_row")[position])
            if self._table("content")[row].tobytes() == sha256:
                return row
        return None

    def content_of(self, row: int) -> str:
        """Return the SHA-256 (hex) of the image that `row` was made from."""
        return bytes(self._table("content")[row]).hex()

    @property
    def paths(self) -> list[str]:
        """Every path that has a row, in manifest order; decoded at every call."""
        text = self._table("path_text").tobytes()
        ends = self._table("path_end").tolist()
        starts = [0, *ends[:-1]]
        with within(f"{self.store}/{self.folder}/path_text"):
            return [
                check_relative(_text(text[start:end]))
                for start, end in zip(starts, ends, strict=True)
            ]

    def path_rows(self) -> Array:
        """Return the row of every path, int32, in the order of `paths`."""
        words = path_words(self.paths)
        rows = np.empty(words.shape[1], np.int32)
        rows[np.lexsort((words[1], words[0]))] = self._table("path_hash_row")
        return rows

    def row_digest(self, row: int) -> bytes:
        """Return the BLAKE2b of the values of a row; zeros where its image failed."""
        return bytes(self._table("row_digest")[row])

    def check(self) -> None:
        """Refuse tables whose declared shapes, types or file sizes lie; reads only metadata.

        Raises:
            TeacherCacheError: names the file.
        """
        shapes = self._shapes()
        if set(self.seal.tables) != set(shapes):
            raise TeacherCacheError(f"{self.store}: tables are {sorted(self.seal.tables)}")
        for folder in (INDEX, self.folder):
            check_metadata(self.store, f"{folder}/{ROOT}", group_metadata({}))
        for name, (shape, dtype) in shapes.items():
            folder = f"{self.folder}/{name}"
            check_metadata(self.store, f"{folder}/{ROOT}", table_metadata(shape, dtype))
            for file, size in table_file_bytes(shape, dtype):
                actual = self.store.size(f"{folder}/{file}")
                if actual is None:
                    raise TeacherCacheError(f"{self.store}/{folder}/{file} is missing")
                if actual != size:
                    raise TeacherCacheError(
                        f"{self.store}/{folder}/{file} has {actual} bytes and should have {size}"
                    )

    def load(self, name: str) -> Array:
        """Read one table and check its values.

        Raises:
            TeacherCacheError: unreadable, not the values that were sealed, or numbers of rows
                that there are not.
        """
        table, layout = f"{self.folder}/{name}", self.seal.layout
        try:
            values = read_table(self.store, table, *self._shapes()[name])
        except DamagedError as error:
            raise TeacherCacheError(f"{self.store}/{table} is damaged: {error}") from error
        if values_digest(values) != self.seal.tables[name]:
            raise TeacherCacheError(f"{self.store}/{table} does not match its digest")
        if name in _ROW_NUMBERS and not _are_rows(layout, values):
            raise TeacherCacheError(
                f"{self.store}/{table} names a row that is not one of the {layout.rows}"
            )
        return values

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return table_shapes(self.seal.layout, self.seal.paths, self.seal.text_bytes)

    def _table(self, name: str) -> Array:
        if name not in self._tables:
            self._tables[name] = self.load(name)
        return self._tables[name]


def index_folder(generations: int) -> str:
    """Return the folder of the tables of the seal that covers so many generations."""
    return f"{INDEX}/{generations}"


def table_shapes(
    layout: Layout, paths: int, text_bytes: int
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of every table of a sealed store."""
    return {
        "content": ((layout.extent, DIGEST_BYTES), "uint8"),
        "content_prefix": ((layout.rows,), "uint64"),
        "content_row": ((layout.rows,), "int32"),
        "path_end": ((paths,), "int64"),
        "path_hash": ((2, paths), "uint64"),
        "path_hash_row": ((paths,), "int32"),
        "path_text": ((text_bytes,), "uint8"),
        "row_digest": ((layout.extent, ROW_DIGEST_BYTES), "uint8"),
    }


def tables_of(chain: PlanChain, row_digests: npt.NDArray[np.uint8]) -> dict[str, Array]:
    """Build every table from the plans and the digests of all rows.

    Raises:
        TeacherCacheError: two paths share all 128 bits of their hash.
    """
    content = chain.content_table()
    numbers = chain.layout.numbers()
    prefix = prefix_of(content[numbers])
    by_prefix = np.argsort(prefix, kind="stable")
    texts = [path.encode("utf-8", _TEXT_ERRORS) for path in chain.paths]
    words = path_words(chain.paths)
    by_hash = np.lexsort((words[1], words[0]))
    words = words[:, by_hash]
    if words.shape[1] > 1 and (words[:, 1:] == words[:, :-1]).all(axis=0).any():
        raise TeacherCacheError("two paths of the manifest have the same 128-bit hash")
    rows = np.fromiter(chain.paths.values(), np.int32, len(chain.paths))
    return {
        "content": content,
        "content_prefix": prefix[by_prefix],
        "content_row": numbers[by_prefix].astype(np.int32),
        "path_end": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "path_hash": words,
        "path_hash_row": rows[by_hash],
        "path_text": np.frombuffer(b"".join(texts), np.uint8),
        "row_digest": row_digests,
    }


def drop_tables(store: Storage, keep: Collection[int]) -> None:
    """Delete the tables of all seals but those that cover so many generations."""
    folders = tuple(f"{index_folder(generations)}/" for generations in keep)
    for name, _ in list(store.files(INDEX)):
        if name != f"{INDEX}/{ROOT}" and not name.startswith(folders):
            store.delete(name)


def values_digest(values: Array) -> str:
    """Return the SHA-256 (hex) of an array's values, little-endian and row by row."""
    return sha256_bytes(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())


def path_words(paths: Iterable[str]) -> Words:
    """Return the two 64-bit halves of each path's 128-bit BLAKE2b, big-endian, as [2, P]."""
    digests = b"".join(
        hashlib.blake2b(path.encode("utf-8", _TEXT_ERRORS), digest_size=16).digest()
        for path in paths
    )
    return np.frombuffer(digests, ">u8").reshape(-1, 2).T.astype(np.uint64)


def _are_rows(layout: Layout, numbers: Array) -> bool:
    """Return whether there is a row of each of these numbers; holes are none."""
    if numbers.min() < 0 or numbers.max() >= layout.extent:
        return False
    exists = np.zeros(layout.extent, np.bool_)
    for span in layout.spans:
        exists[span.start : span.stop] = True
    return bool(exists[numbers].all())


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8", _TEXT_ERRORS)
    except UnicodeDecodeError as error:
        raise TeacherCacheError(f"{data!r:.80} is not UTF-8") from error


def _equal_range(values: Array, value: np.uint64) -> range:
    """Return the positions of `value` in sorted `values`; none, nearly always one."""
    first, last = (int(np.searchsorted(values, value, side)) for side in ("left", "right"))
    return range(first, last)
