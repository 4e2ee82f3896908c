"""Are manifest and images in order? The rules of `medalign data check`, one line each."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from PIL import Image

from ...pipeline.hygiene.finding import Check
from ...pipeline.hygiene.image_check import ImageRules, NamedFiles
from ...pipeline.hygiene.manifest_check import Findings, checked_by_rules
from ...pipeline.manifest import ManifestError, Record, image_paths
from ...runtime.progress import NoProgress
from ..machine import counted

_DEEP: Final = ("I", "F")  # Pillow's modes of more than 8 bits start with these


@dataclass(slots=True)
class DataSet:
    """A manifest and its images, as far as they could be read.

    Attributes:
        manifest: path.
        records: that are in order.
        images: paths of the images that are there.
        findings: what is wrong.
    """

    manifest: Path
    records: list[Record] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    _named: NamedFiles = field(default_factory=NamedFiles)
    _folder: Path = Path()
    _rules: ImageRules | None = None

    def read(self) -> Iterator[Check]:
        """Read the records that are in order, and name what is wrong with any."""
        try:
            for record in checked_by_rules(self.manifest, self.findings):
                self.records.append(record)
                self._named.take(record)
        except ManifestError as error:
            yield Check("manifest", "failed", str(error), "give a manifest in JSON Lines")
            return
        yield self._manifest()
        if self.records:
            fine = f"no fault in {counted(len(self.records), 'record')}"
            advice = f"medalign data check {self.manifest} lists all of them"
            yield self.findings.summary("records", fine, advice)

    def _manifest(self) -> Check:
        records = self.records
        text_only = sum(not record.images for record in records)
        more = f", {text_only:,} text only" if text_only else ""
        images = counted(len(image_paths(records)), "image")
        fine = f"{self.manifest}: {counted(len(records), 'record')} over {images}{more}"
        check = self.findings.summary("manifest", fine, "mend these lines")
        if broken := len(self.findings.of("manifest")):
            text = f"{counted(broken, 'problem')}, {len(records):,} records are in order"
            return replace(check, text=f"{self.manifest}: {text}")
        return check

    def find(self, folder: Path, advice: str) -> Check:
        """Find every image and mask in a folder."""
        if not folder.is_dir():
            return Check("image files", "failed", f"{folder} is no folder", advice)
        self._folder = folder
        self._rules = ImageRules(folder, self._named, self.findings, NoProgress())
        self.images = self._rules.find()
        fine = f"all {len(self.images):,} are in {folder}"
        check = self.findings.summary("image files", fine, "is --images right?")
        total = len(self._named.images)
        if absent := total - len(self.images):
            return replace(check, text=f"{absent:,} of {total:,} are not in {folder}")
        return check

    def decode(self, count: int | None) -> Iterator[Check]:
        """Decode images that were found as training does, evenly spread ones or all."""
        assert self._rules is not None  # found before
        readable = self._rules.decode(self.images, count, workers=0)
        chosen = self.findings.decoded
        kinds = Counter(kind_of(self._folder / path) for path in readable)
        notes = "".join(f", {n:,} {kind}" for kind, n in sorted(kinds.items()) if kind)
        fine = f"{chosen:,} of {counted(len(self.images), 'image')} decoded{notes}"
        advice = "mend or remove them; conversations with such an image are skipped"
        check = self.findings.summary("decoding", fine, advice)
        if broken := chosen - len(readable):
            check = replace(check, text=f"{broken:,} of {chosen:,} cannot be decoded")
        yield check
        fine = f"none of {chosen:,} is tiny or of one colour"
        yield self.findings.summary("image content", fine, "look at them: is that what you meant?")


def kind_of(file: Path) -> str:
    """What is worth a note about an image that can be decoded; an empty string if nothing."""
    with file.open("rb") as opened:
        head = opened.read(132)
    if head[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".dicom"):
        return "DICOM"
    with Image.open(file) as image:
        return "of more than 8 bits (stretched)" if image.mode.startswith(_DEEP) else ""
