"""Compare RadGraph annotations: the graph of entities and relations in a report.

Sources: Jain et al., RadGraph (2021); `radgraph_combined` as in Yu et al., "Evaluating progress in
automatic chest X-ray radiology report generation" (2023), which the paper's scripts call; the
three rewards as in Delbrouck et al. (2022) and the package `radgraph` 0.1.18.
"""

from collections.abc import Hashable, Set
from dataclasses import dataclass

PRESENT = "Observation::definitely present"
"""Label of an entity that a report says is there."""


@dataclass(frozen=True, slots=True)
class Entity:
    """Hold one entity of an annotation.

    Attributes:
        tokens: its words, case kept.
        label: "Anatomy::definitely present", "Observation::definitely absent", ...
        relations: (relation, key of the other entity).
    """

    tokens: str
    label: str
    relations: tuple[tuple[str, str], ...]


Annotation = dict[str, Entity]
"""Entities of one report by key; every key that a relation names is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphScore:
    """Hold what one report scores; every value lies in [0, 1]."""

    combined: float
    entity_f1: float
    relation_f1: float
    simple: float
    partial: float
    complete: float


def graph_score(prediction: Annotation, reference: Annotation) -> GraphScore:
    """Score one report's graph against its reference's.

    Every F1 is over sets, so that a repeated entity counts once, and 0/0 counts as 0: two reports
    without any relation have relation F1 0, and `combined` at most one half.
    """
    entity = set_f1(_entities(prediction), _entities(reference))
    relation = set_f1(_relations(prediction), _relations(reference))
    return GraphScore(
        combined=(entity + relation) / 2,
        entity_f1=entity,
        relation_f1=relation,
        simple=entity,
        partial=set_f1(_with_relation(prediction), _with_relation(reference)),
        complete=set_f1(_with_each_relation(prediction), _with_each_relation(reference)),
    )


def present_findings(annotation: Annotation) -> set[str]:
    """Return the words, lower-cased, of the observations that a report says are there."""
    return {entity.tokens.lower() for entity in annotation.values() if entity.label == PRESENT}


def set_f1(prediction: Set[Hashable], reference: Set[Hashable]) -> float:
    """Return the F1 of two sets; 0 where nothing is shared, also for two empty sets."""
    shared = len(prediction & reference)
    return 2 * shared / (len(prediction) + len(reference)) if shared else 0.0


def _entities(annotation: Annotation) -> set[Hashable]:
    return {(entity.tokens, entity.label) for entity in annotation.values()}


def _relations(annotation: Annotation) -> set[Hashable]:
    return {
        ((entity.tokens, entity.label), (other.tokens, other.label), relation)
        for entity in annotation.values()
        for relation, key in entity.relations
        for other in (annotation[key],)
    }


def _with_relation(annotation: Annotation) -> set[Hashable]:
    return {(e.tokens, e.label, bool(e.relations)) for e in annotation.values()}


def _with_each_relation(annotation: Annotation) -> set[Hashable]:
    # The package lower-cases entities that have relations, and leaves the others as they are.
    alone = {(e.tokens, e.label) for e in annotation.values() if not e.relations}
    return alone | {
        (entity.tokens.lower(), entity.label, relation, annotation[key].tokens.lower())
        for entity in annotation.values()
        for relation, key in entity.relations
    }
