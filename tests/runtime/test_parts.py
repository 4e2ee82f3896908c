import pytest

from medalign.runtime.parts import Part, PartError


def slurm(task: int, count: int, first: int, last: int) -> dict[str, str]:
    values = {"ID": task, "COUNT": count, "MIN": first, "MAX": last}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_a_part_is_written_i_of_n() -> None:
    assert Part.parse("2/3") == Part(2, 3)
    for text in ("0/3", "4/3", "1", "1/0", "a/b", "-1/2", "1/2/3", ""):
        with pytest.raises(PartError, match="part takes I/N"):
            Part.parse(text)


def test_without_slurm_or_ranks_there_is_one_part() -> None:
    part = Part.from_environment({"PATH": "/bin", "WORLD_SIZE": "8"})
    assert (part, part.source) == (Part(1, 1), "")


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (slurm(0, 4, 0, 3), (1, 4)),
        (slurm(3, 4, 0, 3), (4, 4)),
        (slurm(7, 3, 5, 7), (3, 3)),
        (slurm(20, 3, 10, 30), (2, 3)),  # --array=10-30:10
        (slurm(5, 1, 5, 5), (1, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (4, 8)),
        ({**slurm(1, 2, 0, 1), "RANK": "2", "WORLD_SIZE": "4"}, (7, 8)),
    ],
)
def test_slurm_arrays_and_ranks_are_picked_up(
    environment: dict[str, str], part: tuple[int, int]
) -> None:
    found = Part.from_environment(environment)
    assert (found.index, found.count) == part
    assert bool(found.source) == (part[1] > 1)


def test_every_task_of_an_array_has_its_own_part() -> None:
    parts = [
        Part.from_environment({**slurm(task, 3, 2, 6), "RANK": str(rank), "WORLD_SIZE": "2"})
        for task in (2, 4, 6)
        for rank in (0, 1)
    ]
    assert [part.index for part in parts] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "environment",
    [
        slurm(4, 3, 1, 7),  # --array=1,4,7 is even; the next is not
        slurm(3, 3, 1, 7),
        slurm(9, 3, 1, 8),
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "x", "WORLD_SIZE": "4"},
    ][1:],
)
def test_contradictions_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(PartError):
        Part.from_environment(environment)
