"""Write a teacher cache one shard at a time, in any order, by any number of processes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .arrays import check_metadata, metadata_bytes, row_arrays
from .attributes import Attributes, load_attributes, save_attributes
from .commits import CommitLog, ShardState
from .plan_file import FOLDER, PLAN, has_plan, load_plan, save_plan
from .schema import CacheCard, Plan, TeacherCacheError
from .storage import LocalStorage, Storage, explaining_disk_errors, is_leftover, open_storage


class TeacherCacheWriter:
    """Begins a cache or goes on with one; make it with `begin`.

    A shard counts once its commit record is on disk, which is written last. A killed writer
    leaves its shard pending, and writers of different shards never touch the same file.

    Attributes:
        store: where the cache lies.
        card: what the cache holds, as its first builder wrote it.
        plan: which image becomes which row.
        sealed: whether there is nothing left to do.
    """

    def __init__(self, store: Storage, card: CacheCard, plan: Plan, *, sealed: bool) -> None:
        self.store = store
        self.card = card
        self.plan = plan
        self.sealed = sealed
        self._log = CommitLog(store, card, len(plan.content))

    @classmethod
    def begin(cls, store: Path | str | Storage, card: CacheCard, plan: Plan) -> Self:
        """Create the cache at `store`, or go on with the one that is there.

        A sealed cache is left as it is, unless a shard of it is missing or has the wrong size:
        then it goes back to building, and that shard is pending.

        Raises:
            TeacherCacheError: `store` is something else, was begun with another card or plan,
                or cannot be written.
        """
        store = open_storage(store)
        with explaining_disk_errors(store, "beginning"):
            _claim(store, card, plan)
            card, plan = _resume(store, card, plan)
            attributes = _ensure_metadata(store, card, len(plan.content))
            writer = cls(store, card, plan, sealed=attributes.seal is not None)
            if writer.sealed and writer.pending():
                save_attributes(store, Attributes(card=card, rows=attributes.rows), replace=True)
                writer.sealed = False
            return writer

    @staticmethod
    def load_plan(store: Path | str | Storage) -> Plan | None:
        """Return the plan of an earlier build, so that a resumed one need not hash again.

        Raises:
            TeacherCacheError: there is one, and it is damaged.
        """
        store = open_storage(store)
        return load_plan(store)[1] if has_plan(store) else None

    @staticmethod
    def load_card(store: Path | str | Storage) -> CacheCard | None:
        """Return the card that an earlier build began with, None where there is none.

        Raises:
            TeacherCacheError: there is one, and it is damaged.
        """
        store = open_storage(store)
        return load_plan(store)[0] if has_plan(store) else None

    @property
    def shards(self) -> int:
        """Number of shards, the last of which may be short."""
        return self._log.shards

    def rows_of(self, shard: int) -> range:
        """Return the rows that `shard` holds.

        Raises:
            IndexError: there is no such shard.
        """
        return self._log.rows_of(shard)

    def pending(self, part: int = 1, parts: int = 1) -> list[int]:
        """List the shards of `part` that are still to be written, damaged ones included.

        Which rows a shard holds does not depend on `parts`, so a failed part may be finished
        under another number of parts.

        Args:
            part: which part, from 1 to `parts`.
            parts: how many processes share the work; each takes every `parts`-th shard.

        Raises:
            ValueError: `part` is not within 1..`parts`.
        """
        if not 1 <= part <= parts:
            raise ValueError(f"part takes 1 to {parts}, got {part}")
        mine = range(part - 1, self.shards, parts)
        return [shard for shard in mine if self._log.state(shard) is not ShardState.COMPLETE]

    def write(
        self,
        shard: int,
        *,
        features: npt.NDArray[np.float16],
        attention: npt.NDArray[np.float32],
        valid: npt.NDArray[np.bool_],
        source_size: npt.NDArray[np.int32],
        failures: Mapping[int, str] | None = None,
    ) -> None:
        """Write one shard; it is on disk and committed when this returns.

        A shard that is complete already, because another process was faster, stays as it is.

        Args:
            shard: index in 0..`shards` - 1.
            features: [R, N, b], R the rows of this shard.
            attention: [R, N], not negative.
            valid: [R, N], which patches are image rather than padding.
            source_size: [R, 2], height and width of the image in pixels.
            failures: row -> why its image could not be decoded; what the arrays hold there is
                not stored.

        Raises:
            ValueError: a shape or dtype does not fit the card, or a value is not finite or
                negative; nothing was written.
            TeacherCacheError: sealed, or the disk is full or fails.
        """
        arrays: dict[str, npt.NDArray[Any]] = {
            "features": features,
            "attention": attention,
            "valid": valid,
            "source_size": source_size,
        }
        failed = dict(failures or {})
        self._check(shard, arrays, failed)
        with explaining_disk_errors(self.store, f"writing shard {shard} of"):
            if self._done(shard):
                return
            files = self._encode(shard, arrays, failed)
            if not self._done(shard):  # encoding took a while, others may have been faster
                self._log.commit(shard, files, failed)

    def _encode(
        self, shard: int, arrays: Mapping[str, npt.NDArray[Any]], failed: Mapping[int, str]
    ) -> dict[str, bytes]:
        lost = [row - self.rows_of(shard).start for row in sorted(failed)]
        return {
            array.file_of(shard): array.encode(_without(arrays[array.name], lost, array.fill))
            for array in self._log.arrays
        }

    def _done(self, shard: int) -> bool:
        if self._log.state(shard) is ShardState.COMPLETE:
            return True
        if self.sealed:
            raise TeacherCacheError(f"{self.store} is sealed; shard {shard} cannot be written")
        return False

    def _check(
        self, shard: int, arrays: Mapping[str, npt.NDArray[Any]], failed: Mapping[int, str]
    ) -> None:
        rows = self.rows_of(shard)
        for array in self._log.arrays:
            given, shape = arrays[array.name], (len(rows), *array.row_shape)
            if given.shape != shape or given.dtype != np.dtype(array.dtype):
                raise ValueError(
                    f"shard {shard} takes {array.name} of {array.dtype} {shape}, "
                    f"got {given.dtype} {given.shape}"
                )
        if strangers := sorted(set(failed) - set(rows)):
            raise ValueError(f"shard {shard} holds {rows}, got failures of rows {strangers}")
        good = np.array([row not in failed for row in rows])
        for name in ("features", "attention"):
            finite = np.isfinite(arrays[name]).reshape(len(rows), -1).all(axis=1)
            _refuse(rows, good & ~finite, f"{name} holds NaN or infinite values")
        negative = (arrays["attention"] < 0).any(axis=1)
        _refuse(rows, good & negative, "attention holds negative values")
        flat = (arrays["source_size"] < 1).any(axis=1)
        _refuse(rows, good & flat, "source_size holds a side below 1 pixel")


def _claim(store: Storage, card: CacheCard, plan: Plan) -> None:
    """Make `store` ours by publishing the plan, unless one is there already."""
    if has_plan(store):
        return
    if isinstance(store, LocalStorage) and store.folder.is_file():
        raise TeacherCacheError(f"{store} is a file; a cache takes a folder of its own")
    # a build killed before its plan leaves nothing but temporary files
    stranger = next((name for name, _ in store.files() if not is_leftover(name)), None)
    if store.size("zarr.json") is not None and next(store.files(FOLDER), None):
        raise TeacherCacheError(
            f"{store}/{PLAN} is missing: a sealed cache can be read without it, but no build "
            "can go on; restore it, or choose another folder"
        )
    if stranger:
        raise TeacherCacheError(
            f"{store} exists and is not a teacher cache (it holds {stranger!r}); choose another "
            "folder for the cache"
        )
    save_plan(store, card, plan)


def _resume(store: Storage, card: CacheCard, plan: Plan) -> tuple[CacheCard, Plan]:
    begun_card, begun_plan = load_plan(store)
    differences = begun_card.differences(card) + begun_plan.differences(plan)
    if differences:
        raise TeacherCacheError(
            f"{store} was begun differently: {'; '.join(differences)}; "
            "choose another folder, or build with what the store was begun with"
        )
    return begun_card, begun_plan


def _ensure_metadata(store: Storage, card: CacheCard, rows: int) -> Attributes:
    for array in row_arrays(card):
        name, metadata = f"{array.name}/zarr.json", array.metadata(rows)
        try:
            check_metadata(store, name, metadata)
        except TeacherCacheError:  # missing or damaged: it follows from the plan, so write it
            store.write(name, metadata_bytes(metadata))
    wanted = Attributes(card=card, rows=rows)
    save_attributes(store, wanted, replace=False)
    found = load_attributes(store)
    if found is None or found.rows != rows or card.differences(found.card):
        raise TeacherCacheError(f"{store}: zarr.json does not fit the plan; is it of another cache")
    return found


def _without(
    values: npt.NDArray[Any], lost: list[int], fill: float | int | bool | str
) -> npt.NDArray[Any]:
    if not lost:
        return values
    kept = values.copy()
    kept[lost] = fill
    return kept


def _refuse(rows: range, wrong: npt.NDArray[np.bool_], reason: str) -> None:
    if wrong.any():
        raise ValueError(f"row {rows[int(np.argmax(wrong))]}: {reason}")
