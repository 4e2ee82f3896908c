"""Plans on disk: the first file of every generation, written once, so that builds can resume."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..runtime.files import sha256_bytes
from .generations import (
    MAX_GENERATIONS,
    Generation,
    Layout,
    PlanChain,
    check_distinct,
    check_generation,
)
from .schema import FORMAT, CacheCard, Failure, TeacherCacheError
from .storage.local import Storage
from .storage.untrusted import (
    MAX_ROWS,
    check_int,
    check_type,
    json_with_digest,
    json_without_digest,
    strict_fields,
    within,
)

FOLDER = "_commit"
_PLAN_BYTES = 2**33  # 0.9 kB an image, so far above any plan that a machine could load
_FIELDS = (
    "format",
    "generation",
    "previous",
    "card",
    "rows",
    "content",
    "paths",
    "path_rows",
    "failures",
)


def plan_name(generation: int) -> str:
    """Return the name of a generation's plan file."""
    return f"{FOLDER}/plan.{generation}.json"


def publish_generation(
    store: Storage, card: CacheCard, chain: PlanChain | None, added: Generation
) -> bool:
    """Publish the plan that follows `chain`; False when another process was faster."""
    before = () if chain is None else chain.generations
    layout = Layout(card.shard_rows, (*(generation.rows for generation in before), added.rows))
    span = layout.spans[-1]
    fields = {
        "format": FORMAT,
        "generation": len(before),
        "previous": chain.digests[-1] if chain else None,
        "card": card.to_json(),
        "rows": [span.start, span.stop],
        "content": added.content.hex(),
        "paths": list(added.paths),
        "path_rows": list(added.paths.values()),
        "failures": [[failure.path, failure.reason] for failure in added.failures],
    }
    return store.publish(plan_name(len(before)), json_with_digest(fields))


def has_plan(store: Storage) -> bool:
    """Return whether a build was ever begun at `store`."""
    return store.size(plan_name(0)) is not None


def has_newer_plan(store: Storage, generations: int) -> bool:
    """Return whether `store` has more generations than these."""
    return store.size(plan_name(generations)) is not None


def load_plans(store: Storage) -> tuple[CacheCard, PlanChain]:
    """Read the plans that builds at `store` go by, and the card it was begun with.

    Raises:
        TeacherCacheError: missing, damaged, of another format, or no chain.
    """
    card, chain = _load(store, None, None)
    while has_newer_plan(store, len(chain.generations)):
        _, chain = _load(store, card, chain)
    lost = len(chain.generations)
    if has_newer_plan(store, lost + 1):  # the next build would plan something else instead
        raise TeacherCacheError(f"{store}/{plan_name(lost)} is missing; restore it")
    with within(f"{store}/{FOLDER}"):
        check_distinct(chain)
    return card, chain


def check_format(fields: Mapping[str, Any], source: str) -> None:
    """Refuse another version of the layout before its fields are judged by ours.

    Raises:
        TeacherCacheError: not `FORMAT`.
    """
    if (version := fields.get("format")) != FORMAT or isinstance(version, bool):
        raise TeacherCacheError(
            f"{source}: this release reads teacher-cache format {FORMAT}, got {version!r:.80}; "
            "use the medalign release that wrote it, or build the cache again"
        )


def _load(
    store: Storage, first: CacheCard | None, chain: PlanChain | None
) -> tuple[CacheCard, PlanChain]:
    """Read the plan that follows `chain`."""
    number = 0 if chain is None else len(chain.generations)
    check_int(number, f"{store}: number of a generation", 0, MAX_GENERATIONS - 1)
    name = plan_name(number)
    path = f"{store}/{name}"
    try:
        data = store.read(name, _PLAN_BYTES)
    except FileNotFoundError as error:
        raise TeacherCacheError(f"{path} is missing") from error
    fields = json_without_digest(data, path, check_format)
    with within(path):
        fields = strict_fields(fields, _FIELDS, "plan")
        check_int(fields["generation"], "generation", number, number)
        if fields["previous"] != (chain.digests[-1] if chain else None):
            raise TeacherCacheError("does not follow the plan of the generation before it")
        card = CacheCard.from_json(fields["card"])
        if first is not None and (differences := first.differences(card)):
            raise TeacherCacheError(f"is of another cache: {'; '.join(differences)}")
        added = _generation(fields)
        before, digests = (chain.generations, chain.digests) if chain else ((), ())
        longer = PlanChain(card.shard_rows, (*before, added), (*digests, sha256_bytes(data)))
        check_generation(longer.layout, added)
        span = longer.layout.spans[-1]
        if fields["rows"] != [span.start, span.stop]:
            raise TeacherCacheError(f"rows should be {[span.start, span.stop]}")
    return card, longer


def _generation(fields: Mapping[str, Any]) -> Generation:
    for name, kind in (("content", str), ("paths", list), ("path_rows", list), ("failures", list)):
        check_type(fields[name], f"plan {name}", kind)
    try:
        content = bytes.fromhex(fields["content"])
        rows = np.array(fields["path_rows"] or [0])
        if rows.dtype.kind != "i" or rows.ndim != 1 or not 0 <= rows.min() <= rows.max() < MAX_ROWS:
            raise ValueError("path_rows takes row numbers")
        if content.hex() != fields["content"] or len(content) % 32:
            raise ValueError("content takes SHA-256 digests in lower-case hex")
        paths = dict(zip(fields["paths"], fields["path_rows"], strict=True))
        if len(paths) != len(fields["paths"]):
            raise ValueError("a path is there twice")
        failures = tuple(Failure(path, reason) for path, reason in fields["failures"])
    except (TypeError, ValueError) as error:
        raise TeacherCacheError(f"plan: {error}") from error
    return Generation(content, paths, failures)
