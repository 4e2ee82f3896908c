"""What two manifests share, held so that it grows with their records and not with their pairs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from .side import Member

Kind = Literal["triplet", "file", "pixels", "near", "patient", "study"]

KINDS: Final[dict[Kind, str]] = {
    "triplet": "same image, question and answer",
    "file": "same image file",
    "pixels": "same pixels in another file",
    "near": "near-same image",
    "patient": "same patient",
    "study": "same study",
}
"""Every kind of leak, and what it is called."""

LISTED: Final = 100
"""How many records of each side one leak lists; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Sharers:
    """The records of one side that share something.

    Attributes:
        listed: the first `LISTED` of them; of near-same images, those of the nearest.
        count: how many there are.
    """

    listed: tuple[Member, ...]
    count: int

    @classmethod
    def of(cls, members: Sequence[Member]) -> "Sharers":
        """List the first of some distinct records."""
        return cls(tuple(members[:LISTED]), len(members))


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Hold one thing that two manifests share.

    Attributes:
        kind: how it is shared.
        what: the held-out image's path, or the patient or study; never a text.
        train, test: the records that share it.
        distance: of a near-same image, the smallest, in bits of 256.
    """

    kind: Kind
    what: str
    train: Sharers
    test: Sharers
    distance: float | None = None


@dataclass(slots=True)
class Leaks:
    """Hold everything that two manifests share.

    Attributes:
        found: every leak.
        train, test: the lines of all records that share something, by kind.
    """

    found: list[Leak] = field(default_factory=list)
    train: dict[Kind, set[int]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    test: dict[Kind, set[int]] = field(default_factory=lambda: {kind: set() for kind in KINDS})

    def of(self, kind: Kind) -> list[Leak]:
        """The leaks of one kind."""
        return [leak for leak in self.found if leak.kind == kind]

    def touch(self, kind: Kind, train: Iterable[Member], test: Iterable[Member]) -> None:
        """Remember records that share something."""
        self.train[kind].update(member.line for member in train)
        self.test[kind].update(member.line for member in test)
