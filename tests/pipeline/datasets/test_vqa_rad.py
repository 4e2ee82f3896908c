from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.datasets.prepare import Prepared

Lines = Callable[[Path], list[dict[str, Any]]]
Item = Callable[..., dict[str, Any]]
Prepare = Callable[..., Prepared]
Osf = Callable[[Sequence[dict[str, Any]]], Path]


def test_the_osf_release_is_split_by_phrase_type(
    rad_osf: Osf, prepared: Prepare, rad_item: Item, lines: Lines
) -> None:
    phrases = ("freeform", "para", "test_freeform", "test_para", "draft")
    root = rad_osf([rad_item(n, phrase_type=phrase) for n, phrase in enumerate(phrases)])
    done = prepared("vqa-rad", root)
    assert [line["id"] for line in lines(done.out / "train.jsonl")] == ["vqa-rad_0", "vqa-rad_1"]
    assert [line["id"] for line in lines(done.out / "test.jsonl")] == ["vqa-rad_2", "vqa-rad_3"]
    assert not (done.out / "val.jsonl").exists()
    assert done.report["splits"]["absent"] == ["val"]
    assert done.report["left_out"]["unusable"] == {
        "its phrase_type names no split": {
            "count": 1,
            "first": ["VQA_RAD Dataset Public.json item 5"],
        }
    }
    assert done.report["images"] == str(root / "VQA_RAD Image Folder")


def test_the_oddities_of_the_release_are_put_right(
    rad_osf: Osf, prepared: Prepare, rad_item: Item, lines: Lines
) -> None:
    root = rad_osf(
        [
            rad_item("0", answer_type="CLOSED "),
            rad_item(13, answer=3, answer_type=" open"),
            rad_item("14", answer=2.5, answer_type="OPEN", question=" How large? "),
            rad_item(15, answer="4th ventricle\t", answer_type="OPEN"),
        ]
    )
    records = lines(prepared("vqa-rad", root).out / "train.jsonl")
    assert [record["id"] for record in records] == [
        "vqa-rad_0",
        "vqa-rad_13",
        "vqa-rad_14",
        "vqa-rad_15",
    ]
    kinds = [record["answer_type"] for record in records]
    assert kinds == ["CLOSED", "OPEN", "OPEN", "OPEN"]
    answers = [record["conversations"][1]["value"] for record in records]
    assert answers == ["Yes", "3", "2.5", "4th ventricle"]
    assert records[2]["conversations"][0]["value"] == "<image>\nHow large?"
    assert records[0]["study"] == "https://medpix.example/case?id=1"
    assert records[0]["phrase_type"] == "freeform"
    assert records[0]["image_organ"] == "HEAD"
    assert records[0]["question_type"] == "PRES"


def test_the_repack_is_split_by_its_files(
    rad_repack: Callable[..., Path], prepared: Prepare, rad_item: Item, lines: Lines
) -> None:
    # The repack says freeform for both files, and repeats a qid for its rephrasings.
    train = [rad_item("7"), rad_item(7, question="Is the brain infarcted?", phrase_type="para")]
    root = rad_repack(train, [rad_item(8, answer_type="CLOSED ")])
    done = prepared("vqa-rad", root.parent)
    assert done.report["made_from"]["layout"] == "MICCAI repack"
    assert [line["id"] for line in lines(done.out / "train.jsonl")] == [
        "vqa-rad_7",
        "vqa-rad_7_2",
    ]
    assert done.report["ids"]["repeated"] == {"count": 1, "first": ["vqa-rad_7_2"]}
    assert lines(done.out / "test.jsonl")[0]["answer_type"] == "CLOSED"
    names = [each["name"] for each in done.report["published"]]
    assert names == ["LLaVA-Med", "MICCAI repack"]


def test_parquet_tells_closed_questions_by_their_answer(
    parquet_folder: Callable[..., Path], prepared: Prepare, lines: Lines
) -> None:
    rows = [
        (b"\xff\xd8\xffone", None, "is it normal?", "yes"),
        (b"\xff\xd8\xffone", None, "which side?", "left"),
        (b"\xff\xd8\xfftwo", None, "any mass?", "No"),
        (b"\xff\xd8\xfftwo", None, "any other mass?", "no, none"),
    ]
    root = parquet_folder({"train-00000-of-00001-eb88": rows, "test-00000-of-00001-e5bc": rows[:1]})
    done = prepared("vqa-rad", root)
    kinds = [line["answer_type"] for line in lines(done.out / "train.jsonl")]
    assert kinds == ["CLOSED", "OPEN", "CLOSED", "OPEN"]
    # The triplet in both splits has an id in each.
    train, test = (lines(done.out / f"{name}.jsonl")[0] for name in ("train", "test"))
    assert test["id"] == f"{train['id']}_2"
    assert done.report["duplicates"]["same_across_splits"]["first"] == [[train["id"], test["id"]]]
    assert [each["name"] for each in done.report["published"]] == ["Hugging Face"]


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_val_is_cut_of_train_by_case_where_it_is_asked_for(
    rad_osf: Osf, prepared: Prepare, rad_item: Item, lines: Lines, fraction: float
) -> None:
    items = [
        rad_item(n, f"synpic{n}.jpg", image_case_url=f"case {n // 2}", phrase_type=phrase)
        for phrase, numbers in (("freeform", range(80)), ("test_para", range(80, 90)))
        for n in numbers
    ]
    done = prepared("vqa-rad", rad_osf(items), val_fraction=fraction)
    test = lines(done.out / "test.jsonl")
    assert [line["study"] for line in test] == [f"case {n // 2}" for n in range(80, 90)]
    cases = {
        name: {line["study"] for line in lines(done.out / name)}
        for name in ("train.jsonl", "val.jsonl")
        if (done.out / name).exists()
    }
    assert done.report["splits"]["cut"]["groups"] == 40
    if fraction:
        assert len(cases["train.jsonl"]) + len(cases["val.jsonl"]) == 40
        assert not cases["train.jsonl"] & cases["val.jsonl"]
    else:
        assert list(cases) == ["train.jsonl"]
