"""The group attribute `medalign`: what a store says about itself, and whether it is finished."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .generations import Layout
from .plan_file import FOLDER, check_format, has_plan
from .schema import CacheCard, Failure, TeacherCacheError
from .storage.local import Storage, read_json
from .storage.untrusted import (
    MAX_ROWS,
    DamagedError,
    check_choice,
    check_int,
    check_mapping,
    check_sha256,
    check_text,
    check_type,
    strict_fields,
    within,
    without_digest,
)

State = Literal["building", "sealed"]
ROOT = "zarr.json"
_ROOT_BYTES = 2**28
_BUILDING = ("format", "state", "card", "fingerprint")
_SEALED = (
    "generations",
    "rows",
    "paths",
    "text_bytes",
    "failures",
    "content_hash",
    "plans",
    "records",
    "tables",
)
_OPTIONAL = ("certificate", "gram_error")


@dataclass(frozen=True, slots=True)
class SealedFailure:
    """An image without a readable row.

    Attributes:
        path: in the manifest; None where no path leads to the row any more.
        reason: why.
        row: whose image could not be decoded; None if it could not even be read for hashing.
    """

    path: str | None
    reason: str
    row: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What is only known once every shard was checked.

    Attributes:
        layout: the generations and rows that were there.
        paths: number of manifest paths that have a row.
        text_bytes: bytes of those paths together, as UTF-8.
        failures: images without a readable row.
        content_hash: identity of what the cache holds.
        plans: SHA-256 (hex) of each generation's plan file.
        records: SHA-256 (hex) over all commit records.
        tables: name of an index array -> SHA-256 (hex) of its values.
        certificate: what recomputing rows with the expert showed; None if that was not done.
        gram_error: errors of the similarities that are stored; None with codec `fp16`.
    """

    layout: Layout
    paths: int
    text_bytes: int
    failures: tuple[SealedFailure, ...]
    content_hash: str
    plans: tuple[str, ...]
    records: str
    tables: Mapping[str, str] = field(hash=False)
    certificate: Mapping[str, Any] | None = field(default=None, hash=False)
    gram_error: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def generations(self) -> int:
        """Number of generations that are sealed."""
        return len(self.plans)

    @property
    def listed_failures(self) -> tuple[Failure, ...]:
        """Failures that a path leads to."""
        return tuple(Failure(fail.path, fail.reason) for fail in self.failures if fail.path)

    @property
    def reasons(self) -> dict[int, str]:
        """Row -> why its image could not be decoded."""
        return {fail.row: fail.reason for fail in self.failures if fail.row is not None}

    @property
    def unreadable(self) -> dict[str, str]:
        """Path -> why its image could not even be read for hashing; such an image has no row."""
        return {fail.path: fail.reason for fail in self.failures if fail.path and fail.row is None}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        return {
            "generations": list(self.layout.counts),
            "rows": self.layout.rows,
            "paths": self.paths,
            "text_bytes": self.text_bytes,
            "failures": [[failed.path, failed.reason, failed.row] for failed in self.failures],
            "content_hash": self.content_hash,
            "plans": list(self.plans),
            "records": self.records,
            "tables": dict(self.tables),
            **{name: dict(value) for name, value in optional.items() if value is not None},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The attribute in full; `seal` is None while the store is building."""

    card: CacheCard
    seal: Seal | None = None

    @property
    def state(self) -> State:
        """`sealed` once the seal is set."""
        return "building" if self.seal is None else "sealed"


def load_attributes(store: Storage) -> Attributes | None:
    """Read the attributes of `store`; None when its build was killed before it wrote any.

    Raises:
        TeacherCacheError: no store, of another program, damaged, or of another format.
    """
    if not store.exists():
        raise TeacherCacheError(f"{store} does not exist; `medalign cache build` makes a cache")
    path = f"{store}/{ROOT}"
    if store.size(ROOT) is None:
        if has_plan(store):
            return None
        raise TeacherCacheError(f"{store} is not a teacher cache: it has no {ROOT}")
    try:
        attribute = _medalign_of(read_json(store, ROOT, _ROOT_BYTES), store)
        check_format(attribute, path)  # first: another version may digest in another way
        fields = without_digest(attribute, f"{path}: attribute medalign")
    except DamagedError as error:
        if not has_plan(store):
            raise
        raise DamagedError(
            f"{error}; the shards are not touched by this: delete {path}, then run the same "
            f"`medalign cache build` again and `medalign cache seal {store}`"
        ) from error
    with within(f"{path}: attribute medalign"):
        return _attributes_from(fields)


def _attributes_from(attribute: dict[str, Any]) -> Attributes:
    check_choice(attribute.get("state"), "state", get_args(State))
    sealed = attribute["state"] == "sealed"
    names, optional = (_BUILDING + _SEALED, _OPTIONAL) if sealed else (_BUILDING, ())
    fields = strict_fields(attribute, names, "fields", optional)
    card = CacheCard.from_json(fields["card"])
    if fields["fingerprint"] != card.fingerprint():
        raise TeacherCacheError("fingerprint does not fit the card")
    seal = _seal_from(fields, card.shard_rows) if sealed else None
    return Attributes(card=card, seal=seal)


def _medalign_of(root: object, store: Storage) -> Mapping[str, Any]:
    fields = root if isinstance(root, dict) else {}
    attributes = fields.get("attributes")
    kind = (fields.get("zarr_format"), fields.get("node_type"))
    if kind == (3, "group") and isinstance(attributes, dict) and "medalign" in attributes:
        return check_mapping(attributes["medalign"], f"{store}/{ROOT}: attribute medalign")
    if next(store.files(FOLDER), None):
        raise DamagedError(f"{store}/{ROOT} is damaged: no group with attribute medalign")
    raise TeacherCacheError(f"{store} is a Zarr store but not a teacher cache")


def _seal_from(fields: Mapping[str, Any], shard_rows: int) -> Seal:
    for name in ("generations", "plans", "failures"):
        check_type(fields[name], name, list)
    layout = Layout(shard_rows, tuple(fields["generations"]))
    check_int(fields["rows"], "rows", layout.rows, layout.rows)
    check_int(len(fields["plans"]), "number of plans", len(layout.counts), len(layout.counts))
    for name in ("content_hash", "records"):
        check_sha256(fields[name], name)
    for digest in fields["plans"]:
        check_sha256(digest, "plans")
    tables = check_mapping(fields["tables"], "tables")
    for name, digest in tables.items():
        check_sha256(digest, f"tables: {name}")
    check_int(fields["paths"], "paths", 1, MAX_ROWS)
    check_int(fields["text_bytes"], "text_bytes", fields["paths"], 2**40)
    optional = {name: fields[name] for name in _OPTIONAL if name in fields}
    for name, value in optional.items():
        check_mapping(value, name)
    return Seal(
        layout=layout,
        paths=fields["paths"],
        text_bytes=fields["text_bytes"],
        failures=tuple(_failure(item, layout) for item in fields["failures"]),
        content_hash=fields["content_hash"],
        plans=tuple(fields["plans"]),
        records=fields["records"],
        tables=tables,
        **optional,
    )


def _failure(item: object, layout: Layout) -> SealedFailure:
    if not isinstance(item, list) or len(item) != 3:
        raise TeacherCacheError(f"failures take path, reason and row, got {item!r:.80}")
    path, reason, row = item
    if path is not None or row is None:
        check_text(path, "failures: path")
    check_text(reason, "failures: reason", empty=True)
    if row is not None:
        check_int(row, "failures: row", 0, layout.extent - 1)
        if row not in layout:
            raise TeacherCacheError(f"failures: there is no row {row}")
    return SealedFailure(path, reason, row)
