"""The plan on disk: the first file of a store, written once, so that a build can be resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .durable import publish_once, read_json, sha256_of
from .schema import FORMAT, CacheCard, Plan, TeacherCacheError
from .strict import canonical_json, check_int, check_mapping, with_digest, within, without_digest

FOLDER = "_commit"
_PLAN = "plan.json"
_PLAN_BYTES = 2**33


def save_plan(store: Path, card: CacheCard, plan: Plan) -> bool:
    """Publish the plan of a new store; False when another process was faster."""
    fields = {"format": FORMAT, "generation": 0, "card": card.to_json(), **plan.to_json()}
    return publish_once(store / FOLDER / _PLAN, canonical_json(with_digest(fields)))


def has_plan(store: Path) -> bool:
    """Say whether a build was ever begun at `store`."""
    return (store / FOLDER / _PLAN).is_file()


def load_plan(store: Path) -> tuple[CacheCard, Plan]:
    """Read the plan that a build at `store` goes by.

    Raises:
        TeacherCacheError: missing, damaged, or of another format.
    """
    path = store / FOLDER / _PLAN
    fields = check_mapping(read_json(path, _PLAN_BYTES), str(path))
    check_format(fields, path)
    fields = without_digest(fields, str(path))
    with within(str(path)):
        del fields["format"]
        check_int(fields.pop("generation", None), "generation", 0, 0)
        card = CacheCard.from_json(fields.pop("card", None))
        return card, Plan.from_json(fields)


def plan_digest(store: Path) -> str:
    """Return the SHA-256 (hex) of the plan's bytes."""
    return sha256_of(store / FOLDER / _PLAN)


def check_format(fields: Mapping[str, Any], where: Path) -> None:
    """Refuse another version of the layout before its fields are judged by ours.

    Raises:
        TeacherCacheError: not `FORMAT`.
    """
    if (found := fields.get("format")) != FORMAT or isinstance(found, bool):
        raise TeacherCacheError(
            f"{where}: this release reads teacher-cache format {FORMAT}, got {found!r:.80}; "
            "use the medalign release that wrote it, or build the cache again"
        )
