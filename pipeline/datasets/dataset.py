"""What medalign knows of a data set: its layouts, published counts, licence and reader."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..progress import NoProgress, Progress
from .sample import Item, Split


class DataSetError(ValueError):
    """Say what is wrong with the folder of a data set, or with what was asked of it."""


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


def _as_it_is(item: Item) -> Item:
    return item


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
    usable: Callable[[Item], Item] = _as_it_is


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
        private: no text of its files is ever told; that may stand where a path should, so paths
            are not told either.
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
