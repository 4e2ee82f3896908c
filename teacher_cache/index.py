"""From a manifest path or a content digest to a row, without a dict of strings.

At 400,000 rows the sorted hashes take 8 MB and milliseconds to load; a dict of the same paths
takes 95 to 229 MB. A path is known by 128 bits of BLAKE2b: the first 64 are searched, the second
64 settle which of equal first halves is meant. Every table is loaded when first used, and its
values are checked against the digest in the group's attributes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import zarr

from .arrays import (
    Array,
    check_metadata,
    group_metadata,
    metadata_bytes,
    table_file_bytes,
    table_files,
    table_metadata,
)
from .attributes import Seal
from .durable import sha256_bytes
from .plan import Plan
from .storage import Storage
from .strict import TeacherCacheError, check_relative, within

Words = npt.NDArray[np.uint64]
_TEXT_ERRORS = "surrogatepass"  # a JSON manifest may hold half a surrogate pair


class RowIndex(Protocol):
    """Where rows are found."""

    def path_row(self, path: str) -> int | None:
        """Return the row of a manifest path."""

    def content_row(self, digest: str) -> int | None:
        """Return the row of an image content (SHA-256, hex)."""

    def content_of(self, row: int) -> str:
        """Return the SHA-256 (hex) of the image that `row` was made from."""

    def paths(self) -> list[str]:
        """Return every path that has a row, in manifest order."""


@dataclass(frozen=True)
class PlanIndex:
    """The index of a store that is still building: the plan itself."""

    plan: Plan

    def path_row(self, path: str) -> int | None:
        """Return the row of a manifest path."""
        return self.plan.paths.get(path)

    def content_row(self, digest: str) -> int | None:
        """Return the row of an image content (SHA-256, hex)."""
        return self._rows.get(digest)

    def content_of(self, row: int) -> str:
        """Return the SHA-256 (hex) of the image that `row` was made from."""
        return self.plan.content[row]

    def paths(self) -> list[str]:
        """Return every path that has a row, in manifest order."""
        return list(self.plan.paths)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {digest: row for row, digest in enumerate(self.plan.content)}


@dataclass
class StoredIndex:
    """The index of a sealed store; nothing is read before it is asked for."""

    store: Storage
    rows: int
    seal: Seal
    _tables: dict[str, Array] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": {}}

    def path_row(self, path: str) -> int | None:
        """Return the row of a manifest path."""
        high, low = path_words([path])[:, 0]
        hashes = self._table("index/path_hash")
        for place in _equal_range(hashes[0], high):
            if hashes[1, place] == low:
                return int(self._table("index/path_hash_row")[place])
        return None

    def content_row(self, digest: str) -> int | None:
        """Return the row of an image content (SHA-256, hex)."""
        wanted = bytes.fromhex(digest)
        prefix = np.uint64(int.from_bytes(wanted[:8], "big"))
        for place in _equal_range(self._table("index/content_prefix"), prefix):
            row = int(self._table("index/content_row")[place])
            if self._table("content")[row].tobytes() == wanted:
                return row
        return None

    def content_of(self, row: int) -> str:
        """Return the SHA-256 (hex) of the image that `row` was made from."""
        return bytes(self._table("content")[row]).hex()

    def paths(self) -> list[str]:
        """Return every path that has a row, in manifest order."""
        text = self._table("index/path_text").tobytes()
        ends = self._table("index/path_end").tolist()
        starts = [0, *ends[:-1]]
        with within(f"{self.store}/index/path_text"):
            return [
                check_relative(_text(text[start:end]))
                for start, end in zip(starts, ends, strict=True)
            ]

    def check(self) -> None:
        """Refuse tables whose declared shapes, types or file sizes lie; reads only metadata.

        Raises:
            TeacherCacheError: names the file.
        """
        wanted = table_shapes(self.rows, self.seal.paths, self.seal.text_bytes)
        if set(self.seal.tables) != set(wanted):
            raise TeacherCacheError(f"{self.store}: tables are {sorted(self.seal.tables)}")
        check_metadata(self.store, "index/zarr.json", group_metadata({}))
        for name, (shape, dtype) in wanted.items():
            check_metadata(self.store, f"{name}/zarr.json", table_metadata(shape, dtype))
            for file, size in table_file_bytes(shape, dtype).items():
                if (found := self.store.size(f"{name}/{file}")) != size:
                    raise TeacherCacheError(
                        f"{self.store}/{name}/{file} has {found} bytes and should have {size}"
                    )

    def load(self, name: str) -> Array:
        """Read one table and check its values.

        Raises:
            TeacherCacheError: unreadable, or not the values that were sealed.
        """
        try:
            values = np.asarray(zarr.open_array(f"{self.store}/{name}", mode="r")[...])
        except Exception as error:  # zarr's codecs raise many types; all mean unreadable bytes
            raise TeacherCacheError(f"{self.store}/{name} is damaged: {error}") from error
        if values_digest(values) != self.seal.tables[name]:
            raise TeacherCacheError(f"{self.store}/{name} does not match its digest")
        return values

    def _table(self, name: str) -> Array:
        if name not in self._tables:
            self._tables[name] = self.load(name)
        return self._tables[name]


def table_shapes(rows: int, paths: int, text_bytes: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of every table of a sealed store."""
    return {
        "content": ((rows, 32), "uint8"),
        "index/content_prefix": ((rows,), "uint64"),
        "index/content_row": ((rows,), "int32"),
        "index/path_end": ((paths,), "int64"),
        "index/path_hash": ((2, paths), "uint64"),
        "index/path_hash_row": ((paths,), "int32"),
        "index/path_text": ((text_bytes,), "uint8"),
    }


def tables_of(plan: Plan) -> dict[str, Array]:
    """Build every table from the plan.

    Raises:
        TeacherCacheError: two paths share all 128 bits of their hash.
    """
    content = np.frombuffer(bytes.fromhex("".join(plan.content)), np.uint8).reshape(-1, 32)
    prefix = content[:, :8].copy().view(">u8")[:, 0].astype(np.uint64)
    by_prefix = np.argsort(prefix, kind="stable")
    texts = [path.encode("utf-8", _TEXT_ERRORS) for path in plan.paths]
    words = path_words(plan.paths)
    by_hash = np.lexsort((words[1], words[0]))
    words = words[:, by_hash]
    if words.shape[1] > 1 and (words[:, 1:] == words[:, :-1]).all(axis=0).any():
        raise TeacherCacheError("two paths of the manifest have the same 128-bit hash")
    rows = np.fromiter(plan.paths.values(), np.int32, len(plan.paths))
    return {
        "content": content,
        "index/content_prefix": prefix[by_prefix],
        "index/content_row": by_prefix.astype(np.int32),
        "index/path_end": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "index/path_hash": words,
        "index/path_hash_row": rows[by_hash],
        "index/path_text": np.frombuffer(b"".join(texts), np.uint8),
    }


def save_tables(store: Storage, tables: dict[str, Array]) -> None:
    """Write every table below `store`, durably."""
    store.write("index/zarr.json", metadata_bytes(group_metadata({})))
    for name, values in tables.items():
        for file, data in table_files(values).items():
            store.write(f"{name}/{file}", data)
        metadata = table_metadata(values.shape, values.dtype.name)
        store.write(f"{name}/zarr.json", metadata_bytes(metadata))


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


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8", _TEXT_ERRORS)
    except UnicodeDecodeError as error:
        raise TeacherCacheError(f"{data!r:.80} is not UTF-8") from error


def _equal_range(values: Array, wanted: np.uint64) -> range:
    first, last = (int(np.searchsorted(values, wanted, side)) for side in ("left", "right"))
    return range(first, last)
