"""What medalign knows of a data set: its layouts, published counts, licence and reader."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...runtime.progress import NoProgress, Progress

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""In the order in which they are written and shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Hold one question and its answer as the data set has them; blanks at both ends do not count.

    Attributes:
        where: file and item, for messages ("train.json item 12"); never text of the sample.
        split: None leaves it to the seeded cut.
        images: paths relative to the image folder, at least one.
        question: without `<image>`; options are appended to it from `options`.
        answer: what the model shall say.
        id: the set's own id, unique in it; None gives a hash of images, question and answer.
        answer_type: None where it means nothing (reports).
        options: of a multiple-choice question, in order; () for any other question.
        patient: samples of one patient never lie on both sides of a seeded cut.
        study: as `patient`, where the set names studies only.
        mask: path of a mask of the first image, relative to the image folder.
        licence: of this sample, where samples of one set differ; None is the set's.
        report: the reference of a report, for `eval score --task report`.
        extra: further fields of the set that are kept in the manifest under their own names.
    """

    where: str
    split: Split | None
    images: tuple[str, ...]
    question: str
    answer: str
    id: str | None = None
    answer_type: Literal["OPEN", "CLOSED"] | None = None
    options: tuple[str, ...] = ()
    modality: str | None = None
    patient: str | None = None
    study: str | None = None
    mask: str | None = None
    licence: str | None = None
    report: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Say that one item of the source becomes no sample.

    Attributes:
        where: file and item; never text of the sample.
        reason: the same words for the same reason, since they are counted by it; no path.
        by_rule: the set's rule asks for it (another language); otherwise something is wrong with
            the item, and the command ends with exit code 1.
        image: path of the image at fault; the report counts distinct ones and names none.
    """

    where: str
    reason: str
    by_rule: bool = False
    image: str | None = None


Item = Sample | LeftOut


class DataSetError(ValueError):
    """Say what is wrong with the folder of a data set, or with the options for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Hold one form in which a data set is handed out.

    Attributes:
        name: as messages and the report say it ("Slake1.0 release").
        files: patterns relative to the set's folder; each must match a file. What matches is what
            the reader reads: it is digested for the report.
        images: the image folder, relative to the set's folder ("." is that folder); None means
            that images are inside the files and get written to `images` in the output folder.
        archive: file in which `images` may still be packed, for the message.
    """

    name: str
    files: tuple[str, ...]
    images: str | None
    archive: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Hold counts of one split; None is not known, or not published.

    Attributes:
        records: samples.
        open: of them with answer type OPEN.
        closed: of them with answer type CLOSED, multiple choice included.
        images: distinct images.
    """

    records: int | None = None
    open: int | None = None
    closed: int | None = None
    images: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Hold counts that somebody published, to compare with what was found.

    Attributes:
        name: whose counts ("official", "Hugging Face", "LLaVA-Med").
        source: where they stand, in words.
        counts: by split, or under "total".
        layouts: names of the layouts they speak of; () means all.
        choices: compared only where the run's choices have these values.
    """

    name: str
    source: str
    counts: Mapping[str, Counts]
    layouts: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)

    def fits(self, layout: str, choices: Mapping[str, str]) -> bool:
        """Return whether these counts speak of what is prepared."""
        named = not self.layouts or layout in self.layouts
        return named and all(choices[name] == value for name, value in self.choices.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Hold one thing that a user may choose about a set: `--choose NAME=VALUE`.

    Attributes:
        name: of the choice.
        default: its value where nothing is chosen.
        values: what is allowed; () allows any text.
        help: one sentence.
    """

    name: str
    default: str
    values: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Hold where a reader finds a data set.

    Attributes:
        root: the set's folder.
        layout: the form it was found in.
        images: folder that image paths are relative to; it need not exist where the reader
            writes the images itself.
        progress: for readers that take longer than some seconds.
        usable: for readers that take a number of samples: returns a sample that can be used, and
            anything else as what is left out.
    """

    root: Path
    layout: Layout
    images: Path
    progress: Progress = field(default_factory=NoProgress)
    usable: Callable[[Item], Item] = lambda item: item


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Hold what is known of a data set.

    Attributes:
        name: on the command line, and the prefix of ids.
        title: in full.
        licence: short, as it stands in every record.
        terms: one sentence on what may be passed on.
        layouts: the forms that are known.
        published: counts to compare with.
        split_rule: where splits come from, one sentence.
        id_rule: where ids come from, one sentence.
        read: yields every item of the source in a fixed order; raises DataSetError where the
            source as a whole cannot be read. The mapping holds every choice's value.
        choices: what a user may choose.
        fractions: of the seeded cut, for samples that come without a split; the rest is train.
        private: no text of its files is shown; text may stand where a path should, so paths are
            not shown either.
    """

    name: str
    title: str
    licence: str
    terms: str
    layouts: tuple[Layout, ...]
    published: tuple[Published, ...]
    split_rule: str
    id_rule: str
    read: Callable[[Source, Mapping[str, str]], Iterator[Item]]
    choices: tuple[Choice, ...] = ()
    fractions: Mapping[Split, float] = field(default_factory=dict)
    private: bool = False


def find_layout(data_set: DataSet, folder: Path) -> tuple[Path, Layout]:
    """Return the set's folder, which is `folder` or lies directly in it, and its layout.

    Raises:
        DataSetError: nothing known is there, or several things are.
    """
    if not folder.is_dir():
        kind = "is a file, name the folder" if folder.exists() else "is not there"
        raise DataSetError(f"{folder}: {kind}; it should be the folder of {data_set.title}")
    for level in ([folder], _folders_in(folder)):
        forms = [
            (root, layout)
            for root in level
            for layout in data_set.layouts
            if not _missing(root, layout)
        ]
        if len(forms) == 1:
            return forms[0]
        if forms:
            listed = "".join(f"\n  {root}: {layout.name}" for root, layout in forms)
            raise DataSetError(
                f"{folder}: holds {data_set.title} more than once; name one folder, or move the "
                f"files of one form into a folder of their own{listed}"
            )
    raise DataSetError(_nothing_found(data_set, folder))


def files_of(root: Path, layout: Layout) -> list[Path]:
    """Return the files that make up a layout, sorted by their path."""
    return sorted({path for pattern in layout.files for path in _matches(root, pattern)})


def image_folder(data_set: DataSet, root: Path, layout: Layout, images: Path | None) -> Path | None:
    """Return the folder that holds the images; None where they are inside the set's files.

    Raises:
        DataSetError: the folder is not there, or `images` (--images) names one for nothing.
    """
    if layout.images is None:
        if images is not None:
            raise DataSetError(
                f"{root}: {layout.name}: the images are inside these files and are written out; "
                "leave --images away"
            )
        return None
    folder = root / layout.images if images is None else images
    if folder.is_dir():
        return folder
    archive = root / layout.archive if layout.archive else None
    if images is None and archive is not None and archive.is_file():
        raise DataSetError(f"{archive}: is still packed; unpack it into {root} and run again")
    raise DataSetError(
        f"{folder}: no such folder; the images of {data_set.title} should lie there, "
        "or pass --images with the folder that holds them"
    )


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _matches(root: Path, pattern: str) -> Sequence[Path]:
    # macOS puts a file ._NAME beside NAME on other file systems.
    return [path for path in root.glob(pattern) if path.is_file() and path.name[0] != "."]


def _missing(root: Path, layout: Layout) -> list[str]:
    return [pattern for pattern in layout.files if not _matches(root, pattern)]


def _nothing_found(data_set: DataSet, folder: Path) -> str:
    lines = [f"{folder}: no known form of {data_set.title} is there or in a folder in it"]
    for layout in data_set.layouts:
        missing = _missing(folder, layout)
        looked = [f"{name} (missing)" if name in missing else name for name in layout.files]
        lines.append(f"  {layout.name}: looked for {', '.join(looked)}")
    return "\n".join(lines)
