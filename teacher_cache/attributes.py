"""The group attribute `medalign`: what a store says about itself, and whether it is finished."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .arrays import group_metadata, metadata_bytes
from .plan import MAX_ROWS
from .plan_file import FOLDER, check_format, has_plan
from .schema import FORMAT, CacheCard, Failure, TeacherCacheError
from .storage import Storage, read_json
from .strict import (
    DamagedError,
    check_choice,
    check_int,
    check_mapping,
    check_sha256,
    check_text,
    check_type,
    strict_fields,
    with_digest,
    within,
    without_digest,
)

State = Literal["building", "sealed"]
_FILE = "zarr.json"
_FILE_BYTES = 2**28
_BUILDING = ("format", "state", "card", "fingerprint", "rows")
_SEALED = ("paths", "text_bytes", "failures", "content_hash", "plan", "records", "tables")
_OPTIONAL = ("certificate",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What is only known once every shard was checked.

    Attributes:
        paths: number of manifest paths that have a row.
        text_bytes: bytes of those paths together, as UTF-8.
        failures: images without a readable row, with that row if they have one.
        content_hash: identity of what the cache holds.
        plan: SHA-256 (hex) of the plan file.
        records: SHA-256 (hex) over all commit records.
        tables: name of an index array -> SHA-256 (hex) of its values.
        certificate: what recomputing rows with the expert showed; None if that was not done.
    """

    paths: int
    text_bytes: int
    failures: tuple[tuple[Failure, int | None], ...]
    content_hash: str
    plan: str
    records: str
    tables: Mapping[str, str] = field(hash=False)
    certificate: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The attribute in full; `seal` is None while the store is building."""

    card: CacheCard
    rows: int
    seal: Seal | None = None

    @property
    def state(self) -> State:
        """`sealed` once the seal is set."""
        return "building" if self.seal is None else "sealed"

    @property
    def shards(self) -> int:
        """Number of shards, the last of which may be short."""
        return -(-self.rows // self.card.shard_rows)


def save_attributes(store: Storage, attributes: Attributes, *, replace: bool) -> None:
    """Write the root `zarr.json`; without `replace` an existing one stays."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "state": attributes.state,
        "card": attributes.card.to_json(),
        "fingerprint": attributes.card.fingerprint(),
        "rows": attributes.rows,
    }
    if (seal := attributes.seal) is not None:
        fields |= {name: getattr(seal, name) for name in _SEALED}
        fields["failures"] = [[fail.path, fail.reason, row] for fail, row in seal.failures]
        fields["tables"] = dict(seal.tables)
        fields |= {} if seal.certificate is None else {"certificate": dict(seal.certificate)}
    data = metadata_bytes(group_metadata({"medalign": with_digest(fields)}))
    if replace:
        store.write(_FILE, data)
    else:
        store.publish(_FILE, data)


def load_attributes(store: Storage) -> Attributes | None:
    """Read the attributes of `store`; None when its build was killed before it wrote any.

    Raises:
        TeacherCacheError: no store, somebody else's, damaged, or of another format.
    """
    if not store.exists():
        raise TeacherCacheError(f"{store} does not exist; `medalign cache build` makes a cache")
    where = f"{store}/{_FILE}"
    if store.size(_FILE) is None:
        if has_plan(store):
            return None
        raise TeacherCacheError(f"{store} is not a teacher cache: it has no {_FILE}")
    try:
        found = _medalign_of(read_json(store, _FILE, _FILE_BYTES), store)
        check_format(found, where)  # first: another version may digest in another way
        fields = without_digest(found, f"{where}: attribute medalign")
    except DamagedError as error:
        if not has_plan(store):
            raise
        raise TeacherCacheError(
            f"{error}; the shards are not touched by this: delete {where}, then run the same "
            f"`medalign cache build` again and `medalign cache seal {store}`"
        ) from error
    return _attributes_from(fields, where)


def _attributes_from(found: dict[str, Any], where: str) -> Attributes:
    with within(f"{where}: attribute medalign"):
        check_choice(found.get("state"), "state", get_args(State))
        sealed = found["state"] == "sealed"
        names, optional = (_BUILDING + _SEALED, _OPTIONAL) if sealed else (_BUILDING, ())
        fields = strict_fields(found, names, "fields", optional)
        card = CacheCard.from_json(fields["card"])
        if fields["fingerprint"] != card.fingerprint():
            raise TeacherCacheError("fingerprint does not fit the card")
        check_int(fields["rows"], "rows", 1, MAX_ROWS)
        seal = _seal_from(fields) if sealed else None
    return Attributes(card=card, rows=fields["rows"], seal=seal)


def _medalign_of(root: object, store: Storage) -> Mapping[str, Any]:
    fields = root if isinstance(root, dict) else {}
    attributes = fields.get("attributes")
    kind = (fields.get("zarr_format"), fields.get("node_type"))
    if kind == (3, "group") and isinstance(attributes, dict) and "medalign" in attributes:
        return check_mapping(attributes["medalign"], f"{store}/{_FILE}: attribute medalign")
    if next(store.files(FOLDER), None):
        raise DamagedError(f"{store}/{_FILE} is damaged: no group with attribute medalign")
    raise TeacherCacheError(f"{store} is a Zarr store but not a teacher cache")


def _seal_from(fields: Mapping[str, Any]) -> Seal:
    rows = fields["rows"]
    for name in ("content_hash", "plan", "records"):
        check_sha256(fields[name], name)
    tables = check_mapping(fields["tables"], "tables")
    for name, digest in tables.items():
        check_sha256(digest, f"tables: {name}")
    check_int(fields["paths"], "paths", rows, MAX_ROWS)
    check_int(fields["text_bytes"], "text_bytes", fields["paths"], 2**40)
    certificate = fields.get("certificate")
    if certificate is not None:
        check_mapping(certificate, "certificate")
    check_type(fields["failures"], "failures", list)
    return Seal(
        paths=fields["paths"],
        text_bytes=fields["text_bytes"],
        failures=tuple(_failure(item, rows) for item in fields["failures"]),
        content_hash=fields["content_hash"],
        plan=fields["plan"],
        records=fields["records"],
        tables=tables,
        certificate=certificate,
    )


def _failure(item: object, rows: int) -> tuple[Failure, int | None]:
    if not isinstance(item, list) or len(item) != 3:
        raise TeacherCacheError(f"failures take path, reason and row, got {item!r:.80}")
    path, reason, row = item
    check_text(path, "failures: path")
    check_text(reason, "failures: reason", empty=True)
    if row is not None:
        check_int(row, "failures: row", 0, rows - 1)
    return Failure(path, reason), row
