"""Read a teacher cache: rows by number, manifest path or content digest."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..runtime.checks import is_sha256
from .attributes import Seal, State, load_attributes
from .commits import CommitLog, ShardState, list_failures
from .format.arrays import check_metadata, row_arrays
from .format.shard_file import Ranges, RowReader, nothing_kept
from .generations import Layout, PlanChain
from .gram.code import GramCode, GramError
from .gram.codec import decode
from .gram.gram_error import GRAM_ERROR, GramErrors, measured_errors, read_errors
from .index import RowIndex, StoredIndex
from .plan_file import load_plans
from .schema import CacheCard, Failure, TeacherCacheError
from .storage.local import LocalStorage, Storage, keep_open, open_storage
from .storage.read_through import NEARBY_BYTES, NearbyFiles
from .storage.untrusted import DamagedError, within

Item = TypeVar("Item")
Result = TypeVar("Result")

_TINY = 1e-12
_IN_FLIGHT = 32  # requests at once: a remote row's time is nearly all waiting


class InFlight:
    """Calls a function for many items, up to `most` at a time; picklable, and safe across fork.

    Attributes:
        most: threads at most; with 1 the calling thread does everything.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"most": self.most, "_pools": {}}

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return what `function` makes of every item, in order; the first error is raised."""
        if self.most == 1:
            return [function(item) for item in items]
        pid = os.getpid()
        if (pool := self._pools.get(pid)) is None:  # of a parent's pool a child has no threads
            pool = self._pools[pid] = ThreadPoolExecutor(self.most, "medalign-read")
        return list(pool.map(function, items))


def _no_features() -> npt.NDArray[np.float16]:
    return np.zeros((0, 0), np.float16)


@dataclass(frozen=True, slots=True, eq=False)
class TeacherRow:
    """What the expert saw in one image.

    Attributes:
        attention: [N] float32, the class token's attention to each patch.
        valid: [N] bool, which patches are image rather than padding.
        source_size: height and width of the image in pixels.
        features: [N, b] float16, unit rows on the student's grid; [0, 0] with codec `gram`.
        code: similarities of the patches in compact form; None with codec `fp16`.
    """

    attention: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    source_size: tuple[int, int]
    features: npt.NDArray[np.float16] = field(default_factory=_no_features)
    code: GramCode | None = None

    def gram(self) -> npt.NDArray[np.float32]:
        """Return the cosine similarity of all patches, [N, N], its diagonal 1.

        Rows and columns of padding patches mean nothing; with codec `gram` they are 0.
        """
        if self.code is not None:
            return self.code.gram()
        patches = self.features.astype(np.float32)
        # A patch of zeros is like no other, and must not become NaN.
        patches /= np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), _TINY)
        gram: npt.NDArray[np.float32] = patches @ patches.T
        np.fill_diagonal(gram, 1)
        return gram


@dataclass(frozen=True, slots=True, eq=False)
class TeacherBatch:
    """Rows stacked: features [B, N, b], attention [B, N], valid [B, N], source_size [B, 2].

    With codec `gram`, `features` is [0, 0] and `codes` holds one code per row.
    """

    attention: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    source_size: npt.NDArray[np.int32]
    features: npt.NDArray[np.float16] = field(default_factory=_no_features)
    codes: tuple[GramCode, ...] = ()


class TeacherCache:
    """A cache, opened read-only with `open`; picklable, and safe across fork and spawn.

    Files are opened on the first read of each process, and index tables when first asked for.

    Attributes:
        store: where the cache lies.
        card: what the cache holds and where it came from.
        seal: what it was sealed with; None while it is building.
        state: `sealed`, or `building` where that was allowed.
        content_hash: identity of what the cache holds; None while it is building.
        fingerprint: identity of the card.
    """

    def __init__(
        self,
        store: Storage,
        card: CacheCard,
        index: RowIndex,
        log: CommitLog,
        seal: Seal | None = None,
        nearby: NearbyFiles | None = None,
    ) -> None:
        self.store = store
        self.card = card
        self.seal = seal
        self.state: State = "building" if seal is None else "sealed"
        self.content_hash = seal.content_hash if seal else None
        self.certificate = seal.certificate if seal else None
        self.fingerprint = card.fingerprint()
        self._log = log
        self._index = index
        self._sealed_errors = read_errors(seal.gram_error) if seal else None
        self._failed = {
            fail.row: f"{fail.path}: {fail.reason}" if fail.path else fail.reason
            for fail in (seal.failures if seal else ())
            if fail.row is not None
        }
        self._unreadable = seal.unreadable if seal else {}
        if isinstance(index, PlanChain):
            self._unreadable = {fail.path: fail.reason for fail in index.failures}
        # a shard of a building store may be written again, so its files are not kept open
        ranges: Ranges = store if seal is None else nearby or keep_open(store)
        forget = nearby.forget if nearby else nothing_kept
        self._readers = {
            array.name: RowReader(ranges, array, log.layout.rows_of, forget) for array in log.arrays
        }
        self._flight = InFlight(1 if isinstance(store, LocalStorage) else _IN_FLIGHT)
        self._ready: set[int] = set()

    @classmethod
    def open(
        cls,
        store: Path | str | Storage,
        *,
        allow_building: bool = False,
        nearby: Path | str | None = None,
        nearby_bytes: int = NEARBY_BYTES,
    ) -> Self:
        """Open the cache at `store`, as it was sealed last.

        Args:
            store: folder or URL of the cache.
            allow_building: also open a cache that is not sealed; rows of shards that are not
                committed are errors then.
            nearby: local folder that keeps rows of a sealed cache behind a URL, so that they
                are fetched once; any number of caches and processes may share it.
            nearby_bytes: how large that folder may become.

        Raises:
            TeacherCacheError: missing, something else, unsealed, damaged, of another format, or
                with metadata that does not fit its card.
        """
        store = open_storage(store)
        attributes = load_attributes(store)
        if attributes is not None and attributes.seal is not None:
            card, seal = attributes.card, attributes.seal
            stored = StoredIndex(store, seal)
            stored.check()
            _check_arrays(store, card, seal.layout)
            log = CommitLog(store, card, seal.layout, seal.plans)
            kept_rows = None
            if nearby is not None and not isinstance(store, LocalStorage):
                kept_rows = NearbyFiles(store, Path(nearby), nearby_bytes, seal.records)
            return cls(store, card, stored, log, seal, kept_rows)
        card, chain = load_plans(store)
        log = CommitLog.of_chain(store, card, chain)
        if not allow_building:
            raise TeacherCacheError(log.unsealed())
        _check_arrays(store, card, chain.layout)
        return cls(store, card, chain, log)

    def __len__(self) -> int:
        """Return the number of rows: distinct image contents, decoded or not.

        Row numbers may have holes where images were added to the store, see `row_numbers`.
        """
        return self._log.layout.rows

    def __contains__(self, key: object) -> bool:
        """Return whether `key` has a row to read: its image did not fail, its shard was committed.

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
        self._check_written(row)
        names = [name for name in self._readers if name != GRAM_ERROR]
        values = self._flight.map(lambda name: self._readers[name].read(row), names)
        arrays: dict[str, Any] = dict(zip(names, values, strict=True))
        self._check_attention([row], arrays["attention"][None])
        height, width = arrays.pop("source_size").tolist()
        if self.card.codec == "gram":
            arrays["code"] = self._decoded(row, arrays.pop("codes"), arrays["valid"])
        return TeacherRow(**arrays, source_size=(height, width))

    @property
    def gram_errors(self) -> GramErrors | None:
        """Errors of all stored similarities together; None with codec `fp16`."""
        if self._sealed_errors is not None:
            return self._sealed_errors
        return measured_errors(self._log)

    def gram_error(self, key: str | int) -> GramError:
        """Return how far the stored similarities of a row are from those the expert gave.

        Raises:
            KeyError: no such row.
            TeacherCacheError: the row holds no data or is damaged.
        """
        if self.card.codec != "gram":
            return GramError(0.0, 0.0)
        row = self.row_of(key)
        self._check_written(row)
        rms, largest = self._readers[GRAM_ERROR].read(row).tolist()
        return GramError(rms, largest)

    def read(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> TeacherBatch:
        """Read `rows` in the order asked for; a row may be asked for twice."""
        numbers = [self.row_of(int(row)) for row in rows]
        for row in numbers:
            self._check_written(row)
        arrays: dict[str, Any] = {
            name: np.empty((len(numbers), *reader.layout.row_shape), reader.layout.dtype)
            for name, reader in self._readers.items()
        }

        def fill(target: tuple[str, int]) -> None:
            name, position = target
            arrays[name][position] = self._readers[name].read(numbers[position])

        self._flight.map(fill, product(arrays, range(len(numbers))))
        self._check_attention(numbers, arrays["attention"])
        if self.card.codec != "gram":
            return TeacherBatch(**arrays)
        del arrays[GRAM_ERROR]
        coded = zip(numbers, arrays.pop("codes"), arrays["valid"], strict=True)
        return TeacherBatch(**arrays, codes=tuple(self._decoded(*row) for row in coded))

    def row_of(self, key: str | int) -> int:
        """Return the row of a manifest path, a SHA-256 in hex, or a row number.

        Raises:
            KeyError: there is no such row.
            TeacherCacheError: the path is that of an image that could not be read at all.
        """
        row = self._find(key)
        if row is None and key in self._unreadable:
            reason = self._unreadable[str(key)]
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
                f"image has {sha256} now; restore the image, or take it in as it is with "
                f"`medalign cache build ... --rehash` and `medalign cache seal {self.store}`"
            )

    @property
    def generations(self) -> int:
        """How many times images were added, the first build included."""
        return len(self._log.layout.counts)

    def row_numbers(self) -> npt.NDArray[np.int64]:
        """Return the numbers of all rows, ascending; adding images may leave holes."""
        return self._log.layout.numbers()

    @property
    def paths(self) -> list[str]:
        """Every manifest path that has a row, in manifest order."""
        return list(self._index.paths)

    def paths_of(self, rows: Collection[int]) -> dict[int, list[str]]:
        """Return the manifest paths that lead to each of `rows`, none for a replaced image's."""
        by_row: dict[int, list[str]] = {row: [] for row in rows}
        leads_to, paths = self._index.path_rows(), self.paths
        for position in np.flatnonzero(np.isin(leads_to, list(by_row))).tolist():
            by_row[int(leads_to[position])].append(paths[position])
        return by_row

    @property
    def failures(self) -> list[Failure]:
        """Images without a readable row, and why."""
        if self.seal is not None:
            return list(self.seal.listed_failures)
        _, chain = load_plans(self.store)
        return list_failures(chain, self._log.reasons())

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ready": set()}

    def _decoded(
        self, row: int, values: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_]
    ) -> GramCode:
        with within(f"row {row} of {self.store}: codes"):
            code = decode(values.data, self.card.expert.grid, self.card.grid)
            if not np.array_equal(code.valid, valid):
                raise DamagedError("they are of other image patches than the row's")
            return code

    def _find(self, key: object) -> int | None:
        row: int | None = None
        if isinstance(key, str):
            row = self._index.path_row(key)
            if row is None and is_sha256(key):
                row = self._index.content_row(key)
        elif isinstance(key, int | np.integer):
            row = int(key)
        return row if row is not None and row in self._log.layout else None

    def _failures_of(self, shard: int) -> Mapping[int, str]:
        if self.state == "building":
            return self._log.record(shard).failures
        return self._failed

    def _check_attention(self, rows: Sequence[int], attention: npt.NDArray[np.float32]) -> None:
        """Refuse what no writer wrote: the losses divide by the sum of a row."""
        if attention.size and attention.min() < 0:
            row = rows[int(np.argmin(attention.min(axis=1)))]
            raise TeacherCacheError(f"row {row} of {self.store}: attention is negative")

    def _check_written(self, row: int) -> None:
        """Refuse rows that hold nothing yet, and those of images that failed."""
        shard = row // self.card.shard_rows
        if self.state == "building" and shard not in self._ready:
            if self._log.state(shard) is not ShardState.COMPLETE:
                raise TeacherCacheError(
                    f"row {row} of {self.store} is not written yet: shard {shard} is pending; "
                    "run the same `medalign cache build` again"
                )
            self._ready.add(shard)
        if row in (failed := self._failures_of(shard)):
            raise TeacherCacheError(
                f"row {row} of {self.store} holds no data: its image failed: {failed[row]}"
            )


def _check_arrays(store: Storage, card: CacheCard, layout: Layout) -> None:
    for array in row_arrays(card):
        metadata = array.metadata(layout.extent)
        check_metadata(store, f"{array.name}/zarr.json", metadata, may_be_longer=True)
