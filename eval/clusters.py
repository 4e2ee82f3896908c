"""Cluster samples: those of one patient or, where the patient is not known, of one image."""

import posixpath
from collections.abc import Iterable, Sequence

from ..pipeline.manifest import Record
from .metrics.interval import number_clusters
from .metrics.statistic import Int64

PATIENT_FIELDS = ("patient", "patient_id", "subject_id")
"""Fields of a record that name its patient; the first that is there counts."""

FEW = 20
"""Below this many clusters a bootstrap interval is rough, and tables warn."""


def cluster_records(records: Sequence[Record]) -> Int64:
    """Return the number of the cluster of every record.

    Records with one patient are a cluster. Without a patient, records that share an image are one,
    also by way of a third, and belong to the patient that another record names for the first of
    these images. A record without patient and image is a cluster of its own. Spellings of one
    path ("a.png" and "./a.png") are one image.
    """
    owner = {image: who for r in records if (who := patient(r)) for image in _images(r)}
    first = _first_of_shared(record for record in records if patient(record) is None)
    owned: dict[str, str] = {}
    for image, root in first.items():
        if image in owner:
            owned.setdefault(root, owner[image])
    return number_clusters([_name(record, first, owned) for record in records])


def patient(record: Record) -> str | None:
    """Return the patient that a record names, as text, or None."""
    names = (record.fields.get(field) for field in PATIENT_FIELDS)
    return next((str(name) for name in names if name is not None and str(name).strip()), None)


def clustered_by(records: Iterable[Record]) -> str:
    """Name the clusters: "patient", "image" or "patient where known, else image"."""
    known = {patient(record) is not None for record in records}
    if known == {True}:
        return "patient"
    return "image" if known == {False} else "patient where known, else image"


def _images(record: Record) -> list[str]:
    return [posixpath.normpath(image) for image in record.images]


def _first_of_shared(records: Iterable[Record]) -> dict[str, str]:
    """Return for every image the first of those that records connect with it."""
    first: dict[str, str] = {}

    def root(image: str) -> str:
        while first[image] != image:
            first[image] = first[first[image]]
            image = first[image]
        return image

    for record in records:
        images = _images(record)
        for image in images:
            first.setdefault(image, image)
            first[root(image)] = root(images[0])
    return {image: root(image) for image in first}


def _name(record: Record, first: dict[str, str], owned: dict[str, str]) -> tuple[str, str]:
    if (who := patient(record)) is not None:
        return "patient", who
    if not record.images:
        return "record", record.id
    image = first[_images(record)[0]]
    return ("patient", owned[image]) if image in owned else ("image", image)
