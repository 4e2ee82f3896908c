"""Cut samples into splits by group, and sample training patients: seeded, whatever their number.

A group's split, and a patient's place in the order, follow from a hash of the seed and the name
alone, so samples that are added later move nothing that was cut before.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from .definition import Choice, DataSetError, Item, LeftOut, Sample, Split

Contents = Callable[[Sequence[str]], Mapping[str, str]]
"""Gives a digest of each image's content, by path; images that cannot be read are missing."""

SAMPLE: Final = Choice(
    name="sample",
    default="all",
    values=(),
    help="how many records of train are taken, patient by patient in a seeded order, or all",
)
SAMPLE_SEED: Final = Choice(
    name="sample_seed", default="0", values=(), help="which patients come first in that order"
)

Group = TypeVar("Group", bound=Sized)

_CUT: tuple[Split, ...] = ("test", "val")  # test first: another share of val leaves it as it was


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Hold samples that all have a split, and how they came to it.

    Attributes:
        samples: in the order in which they came.
        fractions: of the cut; empty where none was made.
        groups: how many groups were cut.
        of_train: whether val was cut out of the set's own train.
    """

    samples: Sequence[Sample]
    fractions: Mapping[Split, float]
    groups: int
    of_train: bool


def cut_samples(
    samples: Sequence[Sample],
    fractions: Mapping[Split, float],
    chosen: Mapping[Split, float],
    seed: int,
    contents: Contents,
) -> Cut:
    """Give every sample a split; those that come with one keep it, unless val is cut of train.

    Args:
        samples: as the set has them.
        fractions: the set's, for samples that come without a split.
        chosen: the user's, which count before the set's. Where every sample has a split, they
            are cut out of train.
        seed: of the cut.
        contents: called for images of samples that name neither patient nor study.
    """
    whole = all(sample.split is not None for sample in samples)
    movable: Split | None = "train" if chosen and whole else None
    indices = [index for index, sample in enumerate(samples) if sample.split == movable]
    if not indices:
        return Cut(samples=samples, fractions={}, groups=0, of_train=False)
    used = chosen if whole else {**fractions, **chosen}
    groups = groups_of([samples[index] for index in indices], contents)
    cut = list(samples)
    for index, group in zip(indices, groups, strict=True):
        cut[index] = replace(samples[index], split=split_of(group, used, seed))
    return Cut(samples=cut, fractions=used, groups=len(set(groups)), of_train=whole)


def split_of(group: str, fractions: Mapping[Split, float], seed: int) -> Split:
    """Return where a group belongs.

    Args:
        group: its name.
        fractions: of test and val, each in [0, 1], together at most 1; the rest is train.
        seed: any whole number.
    """
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    number, limit = int.from_bytes(digest[:8]), 0.0
    for split in _CUT:
        limit += fractions.get(split, 0.0)
        if number < limit * 2**64:
            return split
    return "train"


def groups_of(samples: Sequence[Sample], contents: Contents) -> list[str]:
    """Return the name of each sample's group.

    Samples that share a patient, a study or an image are in one group, also by way of others. A
    group is named after the first of its patients, else of its studies, else of its images.

    An image is a path where there is a patient or a study, else the content of a file: sets that
    name neither hold the same picture in several places.
    """
    above: dict[str, str] = {}
    alone = dict.fromkeys(
        path
        for sample in samples
        if sample.patient is None and sample.study is None
        for path in sample.images
    )
    known = contents(list(alone)) if alone else {}
    for sample in samples:
        first, *others = _names(sample, known)
        above.setdefault(first, first)
        for other in others:
            above.setdefault(other, other)
            least, more = sorted((_top(above, first), _top(above, other)))
            above[more] = least
    return [_top(above, _names(sample, known)[0]) for sample in samples]


def _names(sample: Sample, contents: Mapping[str, str]) -> list[str]:
    """Return what ties a sample to others; the kinds sort as they count: patients come first."""
    named = [("1 patient", sample.patient), ("2 study", sample.study)]
    tied = [f"{kind} {name}" for kind, name in named if name is not None]
    return tied + [f"3 image {contents.get(path, path)}" for path in sample.images]


def _top(above: dict[str, str], name: str) -> str:
    """Return the least name of a group, and shorten the way to it."""
    while above[name] != name:
        above[name] = above[above[name]]
        name = above[name]
    return name


def take(
    patients: Mapping[str, Group],
    read: Callable[[Group], Iterator[Item]],
    choices: Mapping[str, str],
    usable: Callable[[Item], Item],
) -> Iterator[Item]:
    """Yield the items of as many patients as the sample takes; the others as left out by rule.

    Args:
        patients: what each patient has, by name.
        read: gives the items of one patient, as many as the patient has; not called for patients
            that are not taken.
        choices: with `SAMPLE` and `SAMPLE_SEED`.
        usable: returns a sample that can be used; only these count.

    Raises:
        DataSetError: the sample is no number of records.
    """
    missing = _size(choices[SAMPLE.name])
    if missing is None:
        for group in patients.values():
            yield from read(group)
        return
    for name in _seeded(patients, choices[SAMPLE_SEED.name]):
        unread = len(patients[name])
        for item in map(usable, read(patients[name])) if missing else ():
            yield item
            unread -= 1
            missing -= isinstance(item, Sample)
            if missing == 0:
                break
        for _ in range(unread):
            yield LeftOut(where=name, reason="record of train not in the sample", by_rule=True)


def _size(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise DataSetError(f"sample is {text!r}, must be a number from 1, or all")
    return int(text)


def _seeded(patients: Mapping[str, Group], seed: str) -> list[str]:
    """Order by a hash: patients that are added later leave the order of the others unchanged."""

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).digest()

    return sorted(patients, key=key)
