"""One manifest of a comparison: what is kept of each record, and which files its images are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from ..image_files import find_images
from ..manifest import checked_records
from ..records import IMAGE_PLACEHOLDER, Record
from .wording import plain_words


@dataclass(frozen=True, slots=True)
class Member:
    """What is kept of one record; its text only as digests.

    Attributes:
        id, line: as in the manifest.
        images: paths, as in the manifest.
        asked: a digest of each question with its answer, both normalised.
        patient, study: fields of these names as text; None where a record has none.
    """

    id: str
    line: int
    images: tuple[str, ...]
    asked: tuple[bytes, ...]
    patient: str | None
    study: str | None


@dataclass(slots=True)
class Side:
    """A manifest and what its images are.

    Attributes:
        manifest: where it lies.
        root: folder of its images; None compares paths.
        members: its records, in order.
        content: image path -> SHA-256 (hex) of the file; lacks what cannot be read.
    """

    manifest: Path
    root: Path | None
    members: list[Member]
    content: dict[str, str] = field(default_factory=dict)

    def paths(self) -> list[str]:
        """Every image path once, in order."""
        return list(dict.fromkeys(path for member in self.members for path in member.images))

    def identity(self, path: str) -> str:
        """What an image is compared by: its content where that is known, else where it lies."""
        place = path if self.root is None else str(self.root / path)
        return self.content.get(path) or f"path {place}"

    def files(self) -> tuple[dict[str, Path], dict[str, str]]:
        """Map paths to their files, and the other paths to why there is none."""
        root = self.root
        if root is None:
            return {}, {}
        there, absent = find_images(root, self.paths())
        reasons = {
            path: f"is not in {root}" if text == path else text for path, text in absent.items()
        }
        return {path: root / path for path in there}, reasons


def read_side(manifest: Path, root: Path | None) -> Side:
    """Read a manifest; its texts are not kept.

    Raises:
        ManifestError: the manifest is broken.
    """
    return Side(manifest, root, [_member(record) for record in checked_records(manifest)])


def normalised(text: str) -> str:
    """Return the words of a question or answer, without its image placeholders."""
    return plain_words(text.replace(IMAGE_PLACEHOLDER, " "))


def _member(record: Record) -> Member:
    turns = [normalised(turn.text) for turn in record.conversations]
    asked = tuple(_digest(*turns[place : place + 2]) for place in range(0, len(turns), 2))
    patient, study = (_named(record.fields, name) for name in ("patient", "study"))
    return Member(record.id, record.line, record.images, asked, patient, study)


def _digest(*texts: str) -> bytes:
    return blake2b("\0".join(texts).encode(), digest_size=16).digest()


def _named(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None
