"""Which samples hang together: those of one patient or, where that is not known, one image."""

from collections.abc import Iterable, Sequence

from ..pipeline.manifest import Record
from .metrics.interval import number_clusters
from .metrics.statistic import Int64

PATIENT_FIELDS = ("patient", "patient_id", "subject_id")
"""Fields of a record that name its patient; the first that is there counts."""

FEW = 20
"""Below this many clusters a bootstrap interval is rough, and tables say so."""


def cluster_records(records: Sequence[Record]) -> Int64:
    """Return the number of the cluster of every record.

    Records with one patient are a cluster. Without a patient, records with the same images are
    one, and belong to the patient that another record names for the first of these images. A
    record without patient and image is a cluster of its own.
    """
    owner = {image: who for r in records if (who := patient(r)) for image in r.images}
    return number_clusters([_name(record, owner) for record in records])


def patient(record: Record) -> str | None:
    """Return the patient that a record names, as text, or None."""
    found = (record.fields.get(name) for name in PATIENT_FIELDS)
    return next((str(who) for who in found if who is not None and str(who).strip()), None)


def clustered_by(records: Iterable[Record]) -> str:
    """Say what the clusters are: "patient", "image" or "patient where known, else image"."""
    known = {patient(record) is not None for record in records}
    if known == {True}:
        return "patient"
    return "image" if known == {False} else "patient where known, else image"


def _name(record: Record, owner: dict[str, str]) -> tuple[str, object]:
    who = patient(record) or next((owner[i] for i in record.images if i in owner), None)
    if who is not None:
        return "patient", who
    return ("image", record.images) if record.images else ("record", record.id)
