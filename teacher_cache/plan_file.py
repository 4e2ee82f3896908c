"""The plan on disk: the first file of a store, written once, so that a build can be resumed."""

from collections.abc import Mapping
from typing import Any

from .schema import FORMAT, CacheCard, Plan, TeacherCacheError
from .storage import Storage, read_json, sha256_of
from .strict import canonical_json, check_int, check_mapping, with_digest, within, without_digest

FOLDER = "_commit"
PLAN = f"{FOLDER}/plan.json"
_PLAN_BYTES = 2**33


def save_plan(store: Storage, card: CacheCard, plan: Plan) -> bool:
    """Publish the plan of a new store; False when another process was faster."""
    fields = {"format": FORMAT, "generation": 0, "card": card.to_json(), **plan.to_json()}
    return store.publish(PLAN, canonical_json(with_digest(fields)))


def has_plan(store: Storage) -> bool:
    """Say whether a build was ever begun at `store`."""
    return store.size(PLAN) is not None


def load_plan(store: Storage) -> tuple[CacheCard, Plan]:
    """Read the plan that a build at `store` goes by.

    Raises:
        TeacherCacheError: missing, damaged, or of another format.
    """
    where = f"{store}/{PLAN}"
    fields = check_mapping(read_json(store, PLAN, _PLAN_BYTES), where)
    check_format(fields, where)
    fields = without_digest(fields, where)
    with within(where):
        del fields["format"]
        check_int(fields.pop("generation", None), "generation", 0, 0)
        card = CacheCard.from_json(fields.pop("card", None))
        return card, Plan.from_json(fields)


def plan_digest(store: Storage) -> str:
    """Return the SHA-256 (hex) of the plan's bytes."""
    return sha256_of(store, PLAN)


def check_format(fields: Mapping[str, Any], where: str) -> None:
    """Refuse another version of the layout before its fields are judged by ours.

    Raises:
        TeacherCacheError: not `FORMAT`.
    """
    if (found := fields.get("format")) != FORMAT or isinstance(found, bool):
        raise TeacherCacheError(
            f"{where}: this release reads teacher-cache format {FORMAT}, got {found!r:.80}; "
            "use the medalign release that wrote it, or build the cache again"
        )
