"""Take some patients of a split, in an order that follows from a seed and their names alone."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Final, TypeVar

from .dataset import Choice, DataSetError
from .sample import Item, LeftOut, Sample

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


def take(
    patients: Mapping[str, Group],
    read: Callable[[Group], Iterator[Item]],
    choices: Mapping[str, str],
    usable: Callable[[Item], Item],
) -> Iterator[Item]:
    """Yield the items of as many patients as are asked for; the others as left out by rule.

    Args:
        patients: what each patient has, by name.
        read: gives the items of one patient, as many as the patient has; not called for patients
            that are not taken.
        choices: with `SAMPLE` and `SAMPLE_SEED`.
        usable: returns a sample that can be used; only these count.

    Raises:
        DataSetError: the number of records is none.
    """
    wanted = _size(choices[SAMPLE.name])
    if wanted is None:
        for group in patients.values():
            yield from read(group)
        return
    for name in _seeded(patients, choices[SAMPLE_SEED.name]):
        left = len(patients[name])
        for item in map(usable, read(patients[name])) if wanted else ():
            yield item
            left -= 1
            wanted -= isinstance(item, Sample)
            if wanted == 0:
                break
        for _ in range(left):
            yield LeftOut(where=name, reason="record of train not in the sample", by_rule=True)


def _size(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise DataSetError(f"sample is {text!r}, must be a number from 1, or all")
    return int(text)


def _seeded(patients: Mapping[str, Group], seed: str) -> list[str]:
    """Order by a hash: who is added later moves nobody before another."""

    def place(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).digest()

    return sorted(patients, key=place)
