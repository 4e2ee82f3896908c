from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from medalign.pipeline.datasets.definition import Sample, Split
from medalign.pipeline.datasets.split import cut_samples, groups_of, split_of

NAMES = st.sampled_from("abcdefgh")


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    return Sample(
        where="file item 1",
        split=None,
        images=tuple(draw(st.lists(NAMES, min_size=1, max_size=2, unique=True))),
        question="?",
        answer="!",
        patient=draw(st.none() | NAMES),
        study=draw(st.none() | NAMES),
    )


def of(images: str, patient: str | None = None, study: str | None = None) -> Sample:
    return Sample(
        where="file item 1",
        split=None,
        images=tuple(images.split()),
        question="?",
        answer="!",
        patient=patient,
        study=study,
    )


def unread(_paths: Sequence[str]) -> dict[str, str]:
    """No image can be read: each is what it is called."""
    return {}


FRACTIONS: dict[Split, float] = {"val": 0.3, "test": 0.3}


@given(st.lists(samples(), max_size=30), st.integers())
def test_what_is_tied_is_never_on_two_sides(given: list[Sample], seed: int) -> None:
    where = defaultdict(set)
    for sample in cut_samples(given, FRACTIONS, {}, seed, unread).samples:
        for key in (("p", sample.patient), ("s", sample.study), *(("i", i) for i in sample.images)):
            if key[1] is not None:
                where[key].add(sample.split)
    assert all(len(splits) == 1 for splits in where.values())


@given(st.lists(samples(), max_size=30), st.randoms(use_true_random=False), st.integers())
def test_the_order_of_samples_does_not_matter(given: list[Sample], random, seed: int) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(given)))
    random.shuffle(order)
    straight = cut_samples(given, FRACTIONS, {}, seed, unread).samples
    shuffled = cut_samples([given[place] for place in order], FRACTIONS, {}, seed, unread).samples
    assert [straight[place] for place in order] == list(shuffled)


@given(
    st.lists(st.text(min_size=1), unique=True, max_size=30),
    st.lists(st.text(min_size=1), unique=True, max_size=30),
    st.integers(),
)
def test_new_patients_move_nobody(before: list[str], after: list[str], seed: int) -> None:
    old = [of(f"{number}.png", patient) for number, patient in enumerate(before)]
    new = [of(f"{number}-new.png", patient) for number, patient in enumerate(after)]
    alone = cut_samples(old, FRACTIONS, {}, seed, unread).samples
    assert list(cut_samples([*old, *new], FRACTIONS, {}, seed, unread).samples[: len(old)]) == alone


@given(st.text(), st.integers(), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.5))
def test_test_does_not_depend_on_the_share_of_val(
    group: str, seed: int, test: float, val: float, other: float
) -> None:
    first = split_of(group, {"test": test, "val": val}, seed)
    second = split_of(group, {"test": test, "val": other}, seed)
    assert (first == "test") == (second == "test")


def test_shares_are_met() -> None:
    places = [split_of(f"patient {n}", {"val": 0.1, "test": 0.2}, 0) for n in range(10_000)]
    # Three standard deviations of a binomial count.
    assert abs(places.count("val") - 1000) < 90
    assert abs(places.count("test") - 2000) < 120


def test_another_seed_is_another_cut() -> None:
    cuts = [[split_of(f"patient {n}", FRACTIONS, seed) for n in range(50)] for seed in range(5)]
    assert all(one != other for one, other in pairwise(cuts))


def test_all_or_nothing_can_be_asked_for() -> None:
    groups = [f"group {number}" for number in range(100)]
    assert {split_of(group, {}, 0) for group in groups} == {"train"}
    assert {split_of(group, {"test": 1.0}, 0) for group in groups} == {"test"}


def test_groups_are_tied_by_way_of_others() -> None:
    # a and d share nothing; b shares an image with a, c a study with b, d a patient with c.
    a, b = of("1.png", study="s1"), of("1.png 2.png", study="s2")
    c, d = of("3.png", patient="p", study="s2"), of("4.png", patient="p")
    assert groups_of([a, b, c, d], unread) == ["1 patient p"] * 4
    assert groups_of([a, b], unread) == ["2 study s1"] * 2
    assert groups_of([of("1.png"), of("2.png")], unread) == ["3 image 1.png", "3 image 2.png"]


def test_equal_contents_are_one_image_where_no_patient_is_named() -> None:
    contents = {"1.png": "same", "2.png": "same", "3.png": "other"}
    asked = list[str]()

    def read(paths: Sequence[str]) -> dict[str, str]:
        asked.extend(paths)
        return contents

    given = [of("1.png"), of("2.png"), of("3.png"), of("4.png", patient="p"), of("1.png")]
    groups = groups_of(given, read)
    assert groups == ["3 image same", "3 image same", "3 image other", "1 patient p", groups[0]]
    assert asked == ["1.png", "2.png", "3.png"]


def test_only_train_is_cut_where_a_set_has_splits() -> None:
    given = [
        Sample(where="", split=split, images=(f"{number}",), question="?", answer="!")
        for split in ("train", "test")
        for number in range(200)
    ]
    kept = cut_samples(given, {"val": 0.5}, {}, 0, unread)
    assert list(kept.samples) == given
    assert kept.groups == 0
    cut = cut_samples(given, {}, {"val": 0.5}, 0, unread)
    assert cut.groups == 200
    splits = [sample.split for sample in cut.samples]
    assert set(splits[:200]) == {"train", "val"}
    assert set(splits[200:]) == {"test"}
