"""Conversations of the run's manifest that an export is checked on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.manifest import Record, read_manifest, resolve_image
from ...pipeline.pixels import read_image
from ..data.batch import Batch, collate
from ..data.conversation import images_of_prompt
from ..data.dataset import Conversations
from ..students.spec import StudentSpec
from .provenance import ExportError, Origin


@dataclass(frozen=True, slots=True)
class GateSample:
    """One conversation, as the training saw it and as a user would bring it.

    Attributes:
        number: of the record in the manifest, from 1.
        record: of the manifest.
        batch: the whole conversation, answers included; B = 1.
        images: uint8 [H, W, 3], the images of the first question.
    """

    number: int
    record: Record
    batch: Batch
    images: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The run's manifest, where it is now.

    Attributes:
        path: of the manifest.
        images: folder of its images.
        records: all of them.
    """

    path: Path
    images: Path
    records: Sequence[Record]

    @property
    def licences(self) -> dict[str, int]:
        """How many records name which licence."""
        counts: dict[str, int] = {}
        for record in self.records:
            name = str(record.fields.get("licence") or "not stated")
            counts[name] = counts.get(name, 0) + 1
        return counts


def find_manifest(origin: Origin, manifest: Path | None, images: Path | None) -> Manifest | None:
    """Read the run's manifest, or say with None that it is gone.

    Args:
        origin: the run.
        manifest: where it is now, if it moved.
        images: where their folder is now.
    """
    data = origin.recipe.data
    path = manifest or Path(data.manifest or "")
    folder = images or Path(data.images or "")
    if not path.is_file() or not folder.is_dir():
        return None
    return Manifest(path, folder, read_manifest(path))


def take(
    origin: Origin, spec: StudentSpec, manifest: Manifest | None, count: int
) -> list[GateSample]:
    """Take conversations from all over the manifest, those with images first.

    Raises:
        ExportError: the manifest is gone, or none of its conversations can be read.
    """
    if count == 0:
        return []
    if manifest is None:
        data = origin.recipe.data
        raise ExportError(
            f"the export is checked on the run's data, but manifest {data.manifest} or images "
            f"{data.images} are gone: give --manifest and --images, or --images-checked 0 to "
            "export unchecked"
        )
    samples = list(islice(_readable(origin, spec, manifest, count), count))
    if not samples:
        raise ExportError(f"none of the conversations of {manifest.path} can be read")
    return samples


def _readable(
    origin: Origin, spec: StudentSpec, manifest: Manifest, count: int
) -> Iterator[GateSample]:
    length = origin.recipe.data.max_length
    data = Conversations(manifest.records, manifest.images, spec, length, None, alpha=origin.alpha)
    pad = spec.processor.tokenizer.pad_token_id or 0
    for index in _spread(manifest.records, count):
        sample = data[index]
        if sample.encoded is None:
            continue
        record = manifest.records[index]
        pixels = tuple(
            read_image(resolve_image(manifest.images, path), alpha=origin.alpha).rgb
            for path in record.images[: images_of_prompt(record)]
        )
        yield GateSample(index + 1, record, collate([sample], pad), pixels)


def _spread(records: Sequence[Record], count: int) -> list[int]:
    """Numbers of all records: `count` evenly spaced ones with images, then the others."""
    pictured = [k for k, record in enumerate(records) if record.images]
    spaced = np.linspace(0, len(pictured), count, endpoint=False).astype(int)
    chosen = list(dict.fromkeys(pictured[k] for k in spaced)) if pictured else []
    others = set(range(len(records))).difference(chosen)
    return chosen + sorted(others, key=lambda k: not records[k].images)
