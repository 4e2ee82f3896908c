"""Read a teacher cache: rows by number, manifest path or content digest."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr

from .arrays import check_metadata, row_arrays
from .attributes import Attributes, State, load_attributes
from .commits import CommitLog, ShardState
from .index import PlanIndex, RowIndex, StoredIndex
from .plan_file import load_plan
from .schema import CacheCard, Failure, TeacherCacheError
from .storage import Storage, open_storage
from .strict import is_sha256

_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class TeacherRow:
    """What the expert saw in one image.

    Attributes:
        features: [N, b] float16, unit rows on the student's grid.
        attention: [N] float32, the class token's attention to each patch.
        valid: [N] bool, which patches are image rather than padding.
        source_size: height and width of the image in pixels.
    """

    features: npt.NDArray[np.float16]
    attention: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    source_size: tuple[int, int]

    def gram(self) -> npt.NDArray[np.float32]:
        """Return the cosine similarity of all patches, [N, N], its diagonal 1; padding included."""
        patches = self.features.astype(np.float32)
        # A patch of zeros is like no other, and must not become NaN.
        patches /= np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), _TINY)
        gram: npt.NDArray[np.float32] = patches @ patches.T
        np.fill_diagonal(gram, 1)
        return gram


@dataclass(frozen=True, slots=True, eq=False)
class TeacherBatch:
    """Rows stacked: features [B, N, b], attention [B, N], valid [B, N], source_size [B, 2]."""

    features: npt.NDArray[np.float16]
    attention: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    source_size: npt.NDArray[np.int32]


class TeacherCache:
    """A cache, opened read-only with `open`; picklable, and safe across fork and spawn.

    Files are opened on the first read of each process, and index tables when first asked for.

    Attributes:
        store: where the cache lies.
        card: what the cache holds and where it came from.
        state: `sealed`, or `building` where that was allowed.
        content_hash: identity of what the cache holds; None while it is building.
        fingerprint: identity of the card.
        certificate: what recomputing rows with the expert showed; None if that was not done.
    """

    def __init__(self, store: Storage, attributes: Attributes, index: RowIndex) -> None:
        self.store = store
        self.card: CacheCard = attributes.card
        self.state: State = attributes.state
        self.content_hash = attributes.seal.content_hash if attributes.seal else None
        self.fingerprint = attributes.card.fingerprint()
        self.certificate = attributes.seal.certificate if attributes.seal else None
        self._log = CommitLog(store, attributes.card, attributes.rows)
        self._index = index
        self._failed: dict[int, str] = {}
        self._unplanned: dict[str, str] = {}
        self._sealed_failures = attributes.seal.failures if attributes.seal else ()
        for failure, row in self._sealed_failures:
            if row is None:
                self._unplanned[failure.path] = failure.reason
            else:
                self._failed[row] = f"{failure.path}: {failure.reason}"
        self._forget_handles()

    @classmethod
    def open(cls, store: Path | str | Storage, *, allow_building: bool = False) -> Self:
        """Open the cache at `store`.

        Args:
            store: folder or URL of the cache.
            allow_building: also open a cache that is not sealed; rows of shards that are not
                committed are errors then.

        Raises:
            TeacherCacheError: missing, something else, unsealed, damaged, of another format, or
                with metadata that does not fit its card.
        """
        store = open_storage(store)
        attributes = load_attributes(store)
        if attributes is not None and attributes.seal is not None:
            stored = StoredIndex(store, attributes.rows, attributes.seal)
            stored.check()
            _check_arrays(store, attributes)
            return cls(store, attributes, stored)
        card, plan = load_plan(store)
        log = CommitLog(store, card, len(plan.content))
        if not allow_building:
            raise TeacherCacheError(log.unsealed())
        attributes = Attributes(card=card, rows=len(plan.content))
        _check_arrays(store, attributes)
        cache = cls(store, attributes, PlanIndex(plan))
        cache._unplanned = {failure.path: failure.reason for failure in plan.failures}
        return cache

    def __len__(self) -> int:
        """Return the number of rows: distinct image contents, decoded or not."""
        return self._log.rows

    def __contains__(self, key: object) -> bool:
        """Say whether `key` has a row to read: its image did not fail, its shard was committed.

        Damage does not count: a damaged row is in the cache, and reading it is an error.
        """
        row = self._find(key)
        if row is None:
            return False
        shard = row // self.card.shard_rows
        if self.state == "building" and self._log.state(shard) is not ShardState.COMPLETE:
            return False
        return row not in self._failures_of(shard)

    def __getitem__(self, key: str | int) -> TeacherRow:
        """Return the row of `key`.

        Raises:
            KeyError: no such row; the message names the key and the number of rows.
            TeacherCacheError: the image could not be decoded, or the row is damaged.
        """
        row = self.row_of(key)
        height, width = self._read(row, "source_size").tolist()
        return TeacherRow(
            features=self._read(row, "features"),
            attention=self._read(row, "attention"),
            valid=self._read(row, "valid"),
            source_size=(height, width),
        )

    def read(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> TeacherBatch:
        """Read `rows` in the order asked for; a row may be asked for twice.

        One row at a time on purpose: fancy indexing of shards is two to three times slower than
        this loop in zarr-python 3.1.
        """
        numbers = [self.row_of(int(row)) for row in rows]
        arrays = {
            array.name: np.empty((len(numbers), *array.row_shape), array.dtype)
            for array in self._log.arrays
        }
        for name, values in arrays.items():
            for place, row in enumerate(numbers):
                values[place] = self._read(row, name)
        return TeacherBatch(**arrays)

    def row_of(self, key: str | int) -> int:
        """Return the row of a manifest path, a SHA-256 in hex, or a row number.

        Raises:
            KeyError: there is no such row.
            TeacherCacheError: the path is that of an image that could not be read at all.
        """
        row = self._find(key)
        if row is None and key in self._unplanned:
            reason = self._unplanned[str(key)]
            raise TeacherCacheError(f"{key} has no teacher row: it was unreadable: {reason}")
        if row is None:
            raise KeyError(f"{key!r} is not in {self.store}, which has {len(self)} rows")
        return row

    def sha256_of(self, row: int) -> str:
        """Return the SHA-256 (hex) of the image file that `row` was made from."""
        return self._index.content_of(self.row_of(row))

    def check_content(self, row: int, sha256: str) -> None:
        """Refuse an image whose bytes are not those that `row` was made from.

        Raises:
            TeacherCacheError: names the row and both digests.
        """
        if (recorded := self.sha256_of(row)) != sha256:
            raise TeacherCacheError(
                f"row {row} of {self.store} was made from an image with sha256 {recorded}, the "
                f"image has {sha256} now; restore the image, or build the cache again"
            )

    @property
    def paths(self) -> list[str]:
        """Every manifest path that has a row, in manifest order."""
        return self._index.paths()

    @property
    def failures(self) -> list[Failure]:
        """Images without a readable row, and why."""
        if self.state == "sealed":
            return [failure for failure, _ in self._sealed_failures]
        _, plan = load_plan(self.store)
        return self._log.failures(plan)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handles": {}, "_ready": set()}

    def _forget_handles(self) -> None:
        self._pid = os.getpid()
        self._handles: dict[str, Any] = {}
        self._ready: set[int] = set()

    def _read(self, row: int, name: str) -> npt.NDArray[Any]:
        if self._pid != os.getpid():
            self._forget_handles()  # a forked child must not share its parent's handles
        self._check_written(row)
        try:
            if name not in self._handles:
                self._handles[name] = zarr.open_array(f"{self.store}/{name}", mode="r")
            values = np.asarray(self._handles[name][row])
        except Exception as error:  # zarr's codecs raise many types; all mean unreadable bytes
            raise self._damaged(row, name, str(error)) from error
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise self._damaged(row, name, "it holds NaN or infinite values")
        return values

    def _find(self, key: object) -> int | None:
        row: int | None = None
        if isinstance(key, str):
            row = self._index.path_row(key)
            if row is None and is_sha256(key):
                row = self._index.content_row(key)
        elif isinstance(key, int | np.integer):
            row = int(key)
        return row if row is not None and 0 <= row < len(self) else None

    def _failures_of(self, shard: int) -> Mapping[int, str]:
        if self.state == "building":
            return self._log.record(shard).failures
        return self._failed

    def _check_written(self, row: int) -> None:
        """Refuse rows that zarr-python would read as fill values without a word."""
        shard = row // self.card.shard_rows
        if shard not in self._ready:
            if self.state == "building" and self._log.state(shard) is not ShardState.COMPLETE:
                raise TeacherCacheError(
                    f"row {row} of {self.store} is not written yet: shard {shard} is pending; "
                    "run the same `medalign cache build` again"
                )
            if wrong := self._log.wrong_size(shard):
                raise self._damaged(row, *wrong)
            self._ready.add(shard)
        if row in (failed := self._failures_of(shard)):
            raise TeacherCacheError(
                f"row {row} of {self.store} holds no data: its image failed: {failed[row]}"
            )

    def _damaged(self, row: int, name: str, reason: str) -> TeacherCacheError:
        return TeacherCacheError(
            f"row {row} of {self.store}: {name} is damaged: {reason}; "
            f"`medalign cache verify --mend {self.store}` lists all damage, and makes it pending "
            "for the next build"
        )


def _check_arrays(store: Storage, attributes: Attributes) -> None:
    for array in row_arrays(attributes.card):
        check_metadata(store, f"{array.name}/zarr.json", array.metadata(attributes.rows))
