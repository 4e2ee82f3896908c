"""What is shared by very many is counted whole, and listed in part."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medalign.pipeline.hygiene.leakage import LISTED, Kind, Leaks, Member, Side, find_leaks
from medalign.pipeline.hygiene.leakage_report import Comparison, LeakageReport
from medalign.pipeline.hygiene.near_duplicates import Fingerprint
from medalign.runtime.progress import NoProgress

MANY = 3 * LISTED
WHOLE = b"\xff" * 32
Prints = Callable[[str], Fingerprint]


def side(name: str, images: int = MANY, records: int = 1, *, patient: str | None = None) -> Side:
    """So many images, each shown by so many records, of different contents."""
    members = [
        Member(
            id=f"{name}{number}",
            line=number + 1,
            images=(f"{number % images}.png",),
            pairs=(f"{name}{number}".encode(),),
            patient=patient,
            study=None,
        )
        for number in range(images * records)
    ]
    content = {f"{number}.png": f"{name}{number}" for number in range(images)}
    return Side(Path(name), Path(name), members, content)


def leaks_of(train: Side, test: Side, prints: Prints) -> Leaks:
    known = {each: prints(each) for side in (train, test) for each in side.content.values()}
    return find_leaks(train, test, known, 16, NoProgress())


def apart(content: str) -> Fingerprint:
    return Fingerprint(content, bytes(32), bytes(32))


@pytest.mark.parametrize(
    ("kind", "prints"),
    [
        ("pixels", lambda _: Fingerprint("blank", bytes(32), bytes(32))),
        ("near", lambda content: Fingerprint(content, bytes(32), WHOLE)),
    ],
)
def test_images_that_all_look_alike_do_not_list_all_pairs(kind: Kind, prints: Prints) -> None:
    train, test = side("a", records=2), side("b")
    leaks = leaks_of(train, test, prints)
    assert len(leaks.all) == MANY
    for leak in leaks.all:
        assert (leak.kind, leak.train.count, leak.test.count) == (kind, 2 * MANY, 1)
        assert len(leak.train.listed) == LISTED
    assert leaks.train[kind] == set(range(1, 2 * MANY + 1))
    assert leaks.test[kind] == set(range(1, MANY + 1))


def test_the_comparison_by_hash_says_how_far_it_is() -> None:
    told: list[object] = []

    class Told:
        @contextmanager
        def stage(self, what: str, *, total: int, done: int = 0) -> Iterator[None]:
            told.append((what, total - done))
            yield
            told.append("end")

        def advance(self, count: int) -> None:
            told.append(count)

        def say(self, message: str) -> None:
            told.append(message)

    train, test = side("a", 2), side("b", 3)
    known = {content: Fingerprint(content, bytes(32), WHOLE) for content in ("a0", "b1", "b2")}
    find_leaks(train, test, known, 16, Told())
    assert told == [("comparing images", 2), 1, 1, "end"]


def test_equal_images_share_one_list() -> None:
    leaks = leaks_of(side("a"), side("b"), lambda _: Fingerprint("blank", bytes(32), bytes(32)))
    assert len({id(leak.train) for leak in leaks.all}) == 1


def test_a_file_and_a_patient_of_very_many_records_are_listed_in_part() -> None:
    train, test = (side(name, 1, MANY, patient="p") for name in ("a", "b"))
    test.content = train.content
    leaks = leaks_of(train, test, apart)
    assert [leak.kind for leak in leaks.all] == ["file", "patient"]
    for leak in leaks.all:
        assert (leak.train.count, leak.test.count) == (MANY, MANY)
        assert len(leak.train.listed) == len(leak.test.listed) == LISTED
        assert leaks.train[leak.kind] == leaks.test[leak.kind] == set(range(1, MANY + 1))


def test_a_record_of_two_images_is_counted_once() -> None:
    train, test = side("a", 2), side("b", 1)
    train.members[0] = Member("both", 1, ("1.png", "0.png", "1.png"), (b"x",), None, None)
    leaks = leaks_of(train, test, lambda _: Fingerprint("blank", bytes(32), bytes(32)))
    (leak,) = leaks.of("pixels")
    assert leak.train.count == 2
    assert [member.id for member in leak.train.listed] == ["both", "a1"]


def test_the_line_of_every_record_that_shares_something_is_in_the_json() -> None:
    train, test = side("a", 1, MANY, patient="p"), side("b", 2, 1, patient="p")
    test.content["0.png"] = train.content["0.png"]
    leaks = leaks_of(train, test, apart)
    report = LeakageReport(
        train=train,
        comparisons=[Comparison(test=test, leaks=leaks)],
        unreadable=[],
        plain=0,
        images=2,
        distance=16,
    ).to_json()
    (found,) = report["tests"]
    every = list(range(1, MANY + 1))
    assert found["lines"] == {
        "train": {"file": every, "patient": every},
        "test": {"file": [1], "patient": [1, 2]},
    }
    assert found["counts"]["file"] == {"leaks": 1, "test_records": 1, "train_records": MANY}
    assert [leak["train_records"] for leak in found["leaks"]] == [MANY, MANY]
