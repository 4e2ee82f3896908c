"""Begin a store, or find out that it cannot be gone on with."""

from .attributes import ROOT, Attributes, Seal, load_attributes, save_attributes
from .chain import PlanChain, first_generation, next_generation
from .plan import Plan
from .plan_file import FOLDER, has_plan, load_plans, plan_name, publish_generation
from .schema import CacheCard, TeacherCacheError
from .storage import LocalStorage, Storage, is_leftover


def check_claimable(store: Storage) -> None:
    """Refuse a place that is neither a cache that can be built on nor empty.

    Raises:
        TeacherCacheError: names what is there.
    """
    if has_plan(store):
        return
    if isinstance(store, LocalStorage) and store.folder.is_file():
        raise TeacherCacheError(f"{store} is a file; a cache takes a folder of its own")
    if store.size(ROOT) is not None and next(store.files(FOLDER), None):
        raise TeacherCacheError(
            f"{store}/{plan_name(0)} is missing: a sealed cache can be read without it, but no "
            "build can go on; restore it, or choose another folder"
        )
    # a build killed before its plan leaves nothing but temporary files
    stranger = next((name for name, _ in store.files() if not is_leftover(name)), None)
    if stranger and not has_plan(store):  # another process may have begun just now
        raise TeacherCacheError(
            f"{store} exists and is not a teacher cache (it holds {stranger!r}); choose another "
            "folder for the cache"
        )


def check_begun(store: Storage, begun: CacheCard, card: CacheCard) -> None:
    """Refuse to go on with a store that was begun with another card.

    Raises:
        TeacherCacheError: names every difference, and the option that makes it.
    """
    if differences := begun.differences(card):
        raise TeacherCacheError(
            f"{store} was begun differently: {'; '.join(differences)}; "
            "choose another folder, or build with what the store was begun with"
        )


def extended(store: Storage, card: CacheCard, wanted: Plan) -> tuple[CacheCard, PlanChain]:
    """Return the plans of `store` after it was made to hold `wanted`."""
    if not has_plan(store) and publish_generation(store, card, None, first_generation(wanted)):
        return load_plans(store)
    while True:
        begun, plan = load_plans(store)
        check_begun(store, begun, card)
        added = next_generation(plan, wanted)
        if added is None:
            return begun, plan
        if publish_generation(store, card, plan, added):
            return load_plans(store)
        # another process was faster: look again


def ensure_root(store: Storage, card: CacheCard, plan: PlanChain) -> Seal | None:
    """Write the root of a new store; return the seal of one that was sealed."""
    save_attributes(store, Attributes(card=card), replace=False)
    found = load_attributes(store)
    seal = found.seal if found else None
    fits = found is not None and not card.differences(found.card)
    if not fits or (seal and not seal.layout.begins(plan.layout)):
        raise TeacherCacheError(
            f"{store}: zarr.json does not fit the plan; is it of another cache?"
        )
    return seal
