"""Which files of a store are not as they were written, and what brings them back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from .attributes import ROOT, Seal
from .commits import CommitLog, ShardState
from .format.arrays import check_metadata, row_arrays
from .generations import Layout
from .index import StoredIndex
from .origin import build_command, mend_command, seal_command
from .plan_file import plan_name
from .schema import CacheCard, TeacherCacheError
from .storage.local import Storage, sha256_of

_SHOWN = 3


class Remedy(Enum):
    """What brings a file back.

    Mend: `verify --mend` makes its shard pending, and a build writes it again. Seal: `verify
    --mend` puts the store back to building, and a seal writes the file again. Build: any build
    writes it again. Copy: nothing but a copy of the store has it.
    """

    MEND = "mend"
    SEAL = "seal"
    BUILD = "build"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class Damage:
    """A file below the store that is not what was written, how that shows, and what mends it."""

    where: str
    reason: str
    remedy: Remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class DamageFoundError(TeacherCacheError):
    """A check of a store found damage."""

    exit_code = 1

    @classmethod
    def of(cls, store: Storage, damages: Sequence[Damage]) -> "DamageFoundError":
        """Name some of the damages, and what to do."""
        more = f" and {len(damages) - _SHOWN} more" if len(damages) > _SHOWN else ""
        examples = "; ".join(map(str, damages[:_SHOWN]))
        return cls(f"{store} is damaged: {examples}{more}; {'; '.join(advice(store, damages))}")


def advice(store: Storage, damages: Sequence[Damage]) -> Iterator[str]:
    """Say what to do about damages, in order."""
    remedies = {damage.remedy for damage in damages}
    if Remedy.COPY in remedies:
        lost = ", ".join(damage.where for damage in damages if damage.remedy is Remedy.COPY)
        yield f"restore {lost} from a copy of the store, no command can write it again"
    if Remedy.MEND in remedies:
        yield (
            f"`{mend_command(store)}` makes damaged shards pending, then run "
            f"`{build_command(store)}` and `{seal_command(store)}`"
        )
    elif Remedy.SEAL in remedies:
        yield f"`{mend_command(store)}` unseals it, then run `{seal_command(store)}`"
    elif Remedy.BUILD in remedies:
        yield f"`{build_command(store)}` writes it again"


def description_damages(
    store: Storage, card: CacheCard, seal: Seal, *, contents: bool = False
) -> Iterator[Damage]:
    """Find what says how a sealed store is read and is missing or has a wrong size.

    Args:
        store: the cache.
        card: of it.
        seal: of it.
        contents: also read the index and hold it against its digests.
    """
    yield from plan_damages(store, seal, contents=False)
    yield from metadata_damages(store, card, seal.layout)
    yield from index_damages(StoredIndex(store, seal), contents=contents)


def shard_damages(
    log: CommitLog, shards: Sequence[int], *, contents: bool = True
) -> Iterator[Damage]:
    """Find files of shards that do not match their records, by their sizes or byte by byte."""
    for shard in shards:
        for file, reason in log.damages(shard, contents=contents):
            yield _damage(log.store, file, reason, Remedy.MEND)


def incomplete_damages(log: CommitLog) -> Iterator[Damage]:
    """Find files of shards that are missing or have a wrong size, after listing the store once."""
    states = log.states().items()
    wrong = [shard for shard, state in states if state is not ShardState.COMPLETE]
    yield from shard_damages(log, wrong, contents=False)


def plan_damages(store: Storage, seal: Seal, *, contents: bool = True) -> Iterator[Damage]:
    """Find plans that are missing or, with `contents`, not those that were sealed."""
    for generation, sealed in enumerate(seal.plans):
        name, reason = plan_name(generation), ""
        try:
            if store.size(name) is None:
                reason = "is missing"
            elif contents and sha256_of(store, name) != sealed:
                reason = "does not match the seal"
        except (TeacherCacheError, OSError) as error:
            reason = str(error)
        if reason:
            yield Damage(name, f"{reason}; no reader needs it, a new build does", Remedy.COPY)


def metadata_damages(store: Storage, card: CacheCard, layout: Layout) -> Iterator[Damage]:
    """Find row arrays whose `zarr.json` is not what the card makes it."""
    for array in row_arrays(card):
        file = f"{array.name}/{ROOT}"
        try:
            check_metadata(store, file, array.metadata(layout.extent), may_be_longer=True)
        except TeacherCacheError as error:
            yield _damage(store, file, str(error), Remedy.BUILD)


def index_damages(index: StoredIndex, *, contents: bool = True) -> Iterator[Damage]:
    """Find tables of the index that are not as sealed, by their sizes or byte by byte."""
    try:
        index.check()
    except TeacherCacheError as error:
        yield Damage("index", str(error), Remedy.SEAL)
        return
    for name in sorted(index.seal.tables) if contents else ():
        try:
            index.load(name)
        except TeacherCacheError as error:
            yield _damage(index.store, f"{index.folder}/{name}", str(error), Remedy.SEAL)


def _damage(store: Storage, file: str, reason: str, remedy: Remedy) -> Damage:
    """Return a damage whose reason does not begin with the file that it is about."""
    return Damage(file, reason.removeprefix(f"{store}/{file}").lstrip(": "), remedy)
