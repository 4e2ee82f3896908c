"""Everything in a manifest and its images that would fail later: `medalign data check`."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

from ...runtime.progress import Progress
from ..decode import Unreadable
from ..manifest import Record, even, find_images, scan_records, shorten
from ..pixels import PixelsError, read_image
from .fingerprints import read_each
from .leakage import normalised

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Hold one kind of finding.

    Attributes:
        severity: an error fails later, or gives a number that means nothing; a warning may.
        what: what is found, in a few words.
        then: what would come of it, or what to do.
    """

    severity: Severity
    what: str
    then: str


KINDS: Final = {
    "manifest": Kind(
        severity="error", what="broken record", then="every command refuses the manifest"
    ),
    "image-missing": Kind(
        severity="error", what="image is not there", then="is --images right? training skips it"
    ),
    "image-outside": Kind(
        severity="error", what="image leads out of the folder", then="copy it into the folder"
    ),
    "image-unreadable": Kind(
        severity="error", what="image cannot be decoded", then="training skips the record"
    ),
    "image-tiny": Kind(
        severity="warning", what="image is tiny", then="it is enlarged to the student's square"
    ),
    "image-constant": Kind(
        severity="warning", what="image is of one colour", then="nothing can be learnt from it"
    ),
    "mask-missing": Kind(severity="error", what="mask is not there", then="mend or remove `mask`"),
    "mask-unreadable": Kind(
        severity="error", what="mask cannot be decoded", then="mend or remove `mask`"
    ),
    "mask-size": Kind(
        severity="error", what="mask is of another size", then="it marks other places than meant"
    ),
    "no-answer": Kind(
        severity="error", what="no answer", then="neither training nor scoring can use it"
    ),
    "empty-answer": Kind(
        severity="error", what="blank answer", then="`eval score` refuses, training learns silence"
    ),
    "options-malformed": Kind(
        severity="error", what="`options` are no list of two texts or more", then="scoring refuses"
    ),
    "options-repeated": Kind(
        severity="error", what="options repeat", then="no answer can be told to mean one of them"
    ),
    "answer-no-option": Kind(
        severity="error", what="answer is none of the options", then="no answer can be right"
    ),
    "options-unseen": Kind(
        severity="warning", what="question lacks its options", then="the student cannot know them"
    ),
    "closed-odd": Kind(
        severity="warning",
        what="CLOSED without options, and neither yes nor no",
        then="LLaVA-Med's scorer counts every answer as wrong",
    ),
    "no-answer-type": Kind(
        severity="warning", what="no `answer_type`", then="`--task vqa` scores it as CLOSED"
    ),
    "contradiction": Kind(
        severity="warning",
        what="other answers to the same images and question",
        then="at most one of them can be scored as right",
    ),
    "duplicate": Kind(
        severity="warning", what="repeats an earlier record", then="it counts twice"
    ),
}  # fmt: skip
"""Every kind of finding, the worst first in each matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Hold one finding; texts of questions, answers and reports are never part of it.

    Attributes:
        kind: one of `KINDS`.
        line: of the record; the number of the item in a JSON array.
        id: of the record; None where it could not be read.
        text: what is wrong there.
    """

    kind: str
    line: int
    id: str | None
    text: str


@dataclass(slots=True)
class Findings:
    """Hold all findings of a manifest.

    Attributes:
        unit: what numbers count: "line", or "item" of a JSON array.
        found: in no order.
        records: records that could be read.
        images: distinct images that they name.
        decoded: images that were decoded.
    """

    unit: str = "line"
    found: list[Finding] = field(default_factory=list)
    records: int = 0
    images: int = 0
    decoded: int = 0

    def add(self, kind: str, line: int, id_: str | None, text: str) -> None:
        """Add one."""
        self.found.append(Finding(kind=kind, line=line, id=id_, text=text))

    def of(self, kind: str) -> list[Finding]:
        """The findings of a kind, by line."""
        return sorted((f for f in self.found if f.kind == kind), key=lambda f: f.line)

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(KINDS[each.kind].severity == "error" for each in self.found)


_YES_NO: Final = ("yes", "no")


class RecordRules:
    """Looks at records one after the other; remembers digests of what was asked and answered."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._records: dict[int, int] = {}
        self._answers: dict[int, dict[int, int]] = {}

    def look(self, record: Record) -> None:
        """Find what is wrong with a record, by itself and beside those before it."""
        if self._answered(record):
            self._options(record)
            self._typed(record)
            self._repeated(record)

    def _answered(self, record: Record) -> bool:
        answers = [turn.text for turn in record.conversations if turn.role == "gpt"]
        if not answers:
            if _is_report(record):
                return True
            self._add("no-answer", record, "the conversation ends with the question")
        for number, answer in enumerate(answers, start=1):
            if not answer.strip():
                self._add("empty-answer", record, f"answer {number} of {len(answers)} is blank")
        return bool(answers) and bool(answers[0].strip())

    def _options(self, record: Record) -> None:
        given = record.fields.get("options")
        if given is None or given == []:
            return
        options = _texts(given)
        if len(options) < 2:
            self._add("options-malformed", record, "must be a list of at least two texts")
            return
        named = [normalised(option) for option in options]
        repeated = sorted({named.index(each) + 1 for each in named if named.count(each) > 1})
        if repeated:
            self._add("options-repeated", record, f"option {repeated[0]} of {len(named)} repeats")
        if normalised(_answer(record)) not in named:
            self._add("answer-no-option", record, f"is none of the {len(named)} options")
        question = f" {normalised(record.conversations[0].text)} "
        unseen = [number for number, name in enumerate(named, 1) if f" {name} " not in question]
        if unseen:
            listed = ", ".join(map(str, unseen))
            self._add("options-unseen", record, f"option {listed} of {len(named)} is not in it")

    def _typed(self, record: Record) -> None:
        if _is_report(record) or record.fields.get("options"):
            return
        if record.answer_type is None:
            self._add("no-answer-type", record, "is neither OPEN nor CLOSED")
        elif record.answer_type == "CLOSED" and normalised(_answer(record)) not in _YES_NO:
            self._add("closed-odd", record, "the answer is another one")

    def _repeated(self, record: Record) -> None:
        turns = tuple(turn.text.strip() for turn in record.conversations)
        line = self._records.setdefault(_digest((record.images, turns)), record.line)
        if line != record.line:
            self._add("duplicate", record, f"the same as {self._findings.unit} {line}")
            return
        if _is_report(record) or len(turns) != 2:
            return
        options = tuple(_texts(record.fields.get("options")))
        asked = _digest((record.images, normalised(turns[0]), options))
        known, said = self._answers.setdefault(asked, {}), _digest(normalised(turns[1]))
        others = [line for answer, line in known.items() if answer != said]
        known.setdefault(said, record.line)
        if others:
            self._add(
                "contradiction", record, f"answered otherwise on {self._findings.unit} {others[0]}"
            )

    def _add(self, kind: str, record: Record, text: str) -> None:
        self._findings.add(kind, record.line, record.id, text)


def _is_report(record: Record) -> bool:
    report = record.fields.get("report")
    return isinstance(report, str) and bool(report.strip())


def _answer(record: Record) -> str:
    return next(turn.text for turn in record.conversations if turn.role == "gpt")


def _texts(options: object) -> Sequence[str]:
    """Return options that are all texts; () for anything else."""
    if isinstance(options, list) and all(
        isinstance(each, str) and each.strip() for each in options
    ):
        return options
    return ()


def _digest(value: Hashable) -> int:
    # 64 bits: two of a million records agree by chance in one manifest of 30 million.
    return hash(value)


TINY: Final = 32
"""Images with a side of fewer pixels are called tiny: a vision tower sees 224 or more."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be known of a decoded image: height and width, and whether it is of one colour."""

    size: tuple[int, int]
    constant: bool


@dataclass(slots=True)
class _Named:
    """The files that records name: path -> (line, id) of each record.

    Attributes:
        images: images.
        masks: masks.
        masked: (image, mask) -> records that say so.
    """

    images: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    masked: dict[tuple[str, str], list[tuple[int, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )


def check_manifest(
    manifest: Path, root: Path | None, *, decode: int | None, workers: int, progress: Progress
) -> Findings:
    """Look at every record, and at the files that it names.

    Args:
        manifest: the manifest.
        root: folder of its images and masks; None looks at no file.
        decode: how many images to decode, evenly spread, with their masks; None for all.
        workers: processes that decode.
        progress: is told.

    Raises:
        ManifestError: the file is no manifest at all.
        WorkerDiedError: a worker process ended by itself.
    """
    findings, named = Findings(), _Named()
    rules = RecordRules(findings)
    for where, line, found in scan_records(manifest):
        findings.unit = where.partition(" ")[0]
        if isinstance(found, Record):
            findings.records += 1
            rules.look(found)
            _take_names(found, named)
        else:
            for problem in found:
                findings.add("manifest", line, None, problem)
    findings.images = len(named.images)
    if root is not None:
        _files(root, named, findings, decode, workers, progress)
    return findings


def look_at(file: Path) -> Look | Unreadable:
    """Decode an image as every command does."""
    try:
        rgb = read_image(file).rgb
    except PixelsError as error:
        return Unreadable(error.reason)
    return Look(rgb.shape[:2], bool(np.all(rgb == rgb[0, 0])))


def _take_names(record: Record, named: _Named) -> None:
    who = record.line, record.id
    for path in dict.fromkeys(record.images):
        named.images[path].append(who)
    mask = record.fields.get("mask")
    if isinstance(mask, str):
        named.masks[mask].append(who)
        if record.images:
            named.masked[record.images[0], mask].append(who)


def _files(
    root: Path,
    named: _Named,
    findings: Findings,
    decode: int | None,
    workers: int,
    progress: Progress,
) -> None:
    total = len(named.images) + len(named.masks)
    with progress.stage("looking for files", total=total):
        there, absent = find_images(root, named.images, progress.advance)
        masks, lost = find_images(root, named.masks, progress.advance)
    for path, why in absent.items():
        kind = "image-outside" if why.outside else "image-missing"
        _add_all(findings, kind, named.images[path], str(why))
    for path, why in lost.items():
        _add_all(findings, "mask-missing", named.masks[path], str(why))
    chosen = even(there, decode)
    shown = set(chosen)
    of_chosen = {mask for image, mask in named.masked if image in shown}
    paths = [*chosen, *(mask for mask in masks if mask in of_chosen or decode is None)]
    files = {root / path: path for path in paths}
    looks = {
        files[file]: look
        for file, look in read_each(look_at, list(files), workers, progress, "decoding images")
    }
    findings.decoded = len(chosen)
    _tell(named, looks, findings)
    _compare_sizes(named.masked, looks, findings)


def _tell(named: _Named, looks: Mapping[str, Look | Unreadable], findings: Findings) -> None:
    for path, look in looks.items():
        images, masks = named.images.get(path, []), named.masks.get(path, [])
        if isinstance(look, Unreadable):
            _add_all(findings, "image-unreadable", images, f"{shorten(path)}: {look.reason}")
            _add_all(findings, "mask-unreadable", masks, f"{shorten(path)}: {look.reason}")
            continue
        height, width = look.size
        if min(look.size) < TINY:
            _add_all(findings, "image-tiny", images, f"{shorten(path)}: {height} x {width} pixels")
        if look.constant:
            _add_all(findings, "image-constant", images, shorten(path))


def _compare_sizes(
    masked: Mapping[tuple[str, str], Sequence[tuple[int, str]]],
    looks: Mapping[str, Look | Unreadable],
    findings: Findings,
) -> None:
    for (image, mask), who in masked.items():
        sizes = [look.size for look in map(looks.get, (image, mask)) if isinstance(look, Look)]
        if len(sizes) == 2 and sizes[0] != sizes[1]:
            shown, other = (f"{height} x {width}" for height, width in sizes)
            _add_all(
                findings,
                "mask-size",
                who,
                f"{shorten(mask)}: {other} pixels, the image has {shown}",
            )


def _add_all(findings: Findings, kind: str, who: Sequence[tuple[int, str]], text: str) -> None:
    for line, id_ in who:
        findings.add(kind, line, id_, text)
