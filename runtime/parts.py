"""Which share of the work this process does: by option, or by what Slurm or torchrun set."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PART = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")


class PartError(ValueError):
    """A share of the work that cannot be."""


@dataclass(frozen=True, slots=True)
class Part:
    """Part `index` of `count`, from 1; it takes the items k with k mod count == index - 1."""

    index: int = 1
    count: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise PartError(f"part takes I/N with 1 <= I <= N, got {self}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `I/N`.

        Raises:
            PartError: it is not that, or I is not within 1..N.
        """
        match = _PART.fullmatch(text)
        if match is None:
            raise PartError(f"part takes I/N, as in 1/4, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Part":
        """Read the share from a Slurm array task and the ranks that torchrun or others set.

        With both, each task of the array is shared among its ranks.

        Raises:
            PartError: the variables contradict each other.
        """
        index, count, sources = 0, 1, []
        for size, rank, source in (
            (*_slurm_array(environment), "the Slurm array"),
            (*_ranks(environment), "RANK and WORLD_SIZE"),
        ):
            if size > 1:
                index, count = index * size + rank, count * size
                sources.append(source)
        return cls(index + 1, count, " and ".join(sources))


def _slurm_array(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of tasks and which of them this is, from 0."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 1, 0
    task, count, first, last = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}", default)
        for name, default in (("ID", 0), ("COUNT", 1), ("MIN", 0), ("MAX", 0))
    )
    step = (last - first) // (count - 1) if count > 1 else 1
    rank, remainder = divmod(task - first, max(step, 1))
    even = count == 1 or first + step * (count - 1) == last
    if remainder or not even or not 0 <= rank < count:
        raise PartError(
            f"task {task} of the Slurm array is not one of {count} evenly spaced tasks from "
            f"{first} to {last}; pass --part I/N"
        )
    return count, rank


def _ranks(environment: Mapping[str, str]) -> tuple[int, int]:
    size = _number(environment, "WORLD_SIZE", 1)
    rank = _number(environment, "RANK", 0)
    if "RANK" in environment and not 0 <= rank < size:
        raise PartError(f"RANK is {rank} and WORLD_SIZE {size}; pass --part I/N")
    return (size, rank) if "RANK" in environment else (1, 0)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError as error:
        raise PartError(f"{name} takes a whole number, got {environment[name]!r}") from error
