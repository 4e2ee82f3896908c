"""OmniMedVQA: options of every question, both parts, and a cut of our own."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.datasets.definition import DataSetError
from medalign.pipeline.datasets.prepare import Prepared

Lines = Callable[[Path], list[dict[str, Any]]]
Prepare = Callable[..., Prepared]
Omni = Callable[[Mapping[str, Sequence[Mapping[str, Any]]]], Path]


def item(number: int, subset: str = "Some Set", **changes: Any) -> dict[str, Any]:
    """One question with exactly the fields of the release."""
    whole = {
        "dataset": subset,
        "question_id": f"{subset}_{number:04}",
        "question_type": "Modality Recognition",
        "question": "What modality is shown?",
        "gt_answer": "MR",
        "image_path": f"Images/{subset}/{number:04}.png",
        "option_A": "CT",
        "option_B": "MR",
        "option_C": "X-ray",
        "option_D": "Ultrasound",
        "modality_type": "MR",
    } | changes
    return {name: value for name, value in whole.items() if value is not None}


@pytest.fixture
def omni(tmp_path: Path) -> Omni:
    """Make the set's folder: `omni({"Open-access/Some Set": [items]})`."""

    def make(files: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
        root = tmp_path / "download" / "OmniMedVQA"
        for name, items in files.items():
            path = root / "QA_information" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(items))
            for each in items:
                image = root / each["image_path"]
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(each["image_path"].encode())
        return root

    return make


def every(done: Prepared, lines: Lines) -> dict[str, dict[str, Any]]:
    found = [done.out / f"{split}.jsonl" for split in ("train", "val", "test")]
    records = [line for path in found if path.is_file() for line in lines(path)]
    return {record["id"]: record for record in records}


def test_options_stand_in_the_question_and_as_a_field(
    omni: Omni, prepared: Prepare, lines: Lines
) -> None:
    root = omni({"Open-access/Some Set": [item(1)]})
    done = prepared("omnimedvqa", root.parent)
    record = every(done, lines)["omnimedvqa_Some_Set_Some_Set_0001"]
    assert record["conversations"][0]["value"] == (
        "<image>\nWhat modality is shown? "
        "Please choose from the following options: CT, MR, X-ray, Ultrasound"
    )
    assert record["conversations"][1]["value"] == record["answer"] == "MR"
    assert record["options"] == ["CT", "MR", "X-ray", "Ultrasound"]
    assert (record["answer_type"], record["modality"]) == ("CLOSED", "MR")
    assert record["image"] == "Images/Some Set/0001.png"
    assert record["question_type"] == "Modality Recognition"
    assert done.report["images"] == str(root)
    assert done.report["published"][0]["found_minus_published"]["total"]["records"] == 1 - 88996


def test_fewer_options_the_other_spelling_of_modality_and_of_the_answer(
    omni: Omni, prepared: Prepare, lines: Lines
) -> None:
    root = omni(
        {
            "Open-access/Chest CT Scan": [
                item(1, option_C=None, option_D=None),
                item(2, modality_type=None, modality="CT"),
                item(3, gt_answer="mr."),
                item(4, option_C="", option_D=" "),
                item(5, option_A=">5", option_B="<5", gt_answer="<5"),
            ]
        }
    )
    records = list(every(prepared("omnimedvqa", root), lines).values())
    by_image = {record["image"][-8:-4]: record for record in records}
    assert by_image["0001"]["options"] == by_image["0004"]["options"] == ["CT", "MR"]
    assert by_image["0002"]["modality"] == "CT"
    assert by_image["0003"]["conversations"][1]["value"] == "MR"
    assert by_image["0005"]["conversations"][1]["value"] == "<5"


def test_what_cannot_be_scored_is_left_out_and_listed(omni: Omni, prepared: Prepare) -> None:
    root = omni(
        {
            "Open-access/Some Set": [
                item(1),
                item(2, gt_answer="PET"),
                item(3, option_C="mr", option_D=None, gt_answer="Mr"),
                item(4, option_B=None, option_C=None, option_D=None),
            ]
        }
    )
    done = prepared("omnimedvqa", root)
    unusable = done.report["left_out"]["unusable"]
    assert {why: listed["first"] for why, listed in unusable.items()} == {
        "its answer is none of its options": ["Open-access/Some Set.json item 2"],
        "its answer is several of its options": ["Open-access/Some Set.json item 3"],
        "it has fewer than two options": ["Open-access/Some Set.json item 4"],
    }
    assert done.problems == 3


@pytest.mark.parametrize(
    ("answer", "options"),
    [("HER2+", ("HER2 -", "unknown")), ("> 5 mm", ("< 5 mm", "none")), ("0.5", (".5", "5"))],
)
def test_an_answer_is_not_turned_into_another_one(
    omni: Omni, prepared: Prepare, answer: str, options: tuple[str, str]
) -> None:
    one, other = options
    asked = item(2, gt_answer=answer, option_A=one, option_B=other, option_C=None, option_D=None)
    root = omni({"Open-access/A": [item(1), asked]})
    unusable = prepared("omnimedvqa", root).report["left_out"]["unusable"]
    assert unusable["its answer is none of its options"]["count"] == 1


def test_options_that_are_the_same_are_left_out_as_check_wants_it(
    omni: Omni, prepared: Prepare
) -> None:
    twice = item(2, gt_answer="CT", option_A="MR", option_B="CT", option_C="MR")
    signs = item(3, gt_answer="< 5 mm", option_A="< 5 mm", option_B="> 5 mm")
    done = prepared("omnimedvqa", omni({"Open-access/A": [item(1), twice, signs]}))
    unusable = done.report["left_out"]["unusable"]
    assert {why: listed["first"] for why, listed in unusable.items()} == {
        "two of its options are the same": ["Open-access/A.json item 2"]
    }


def test_what_macos_leaves_beside_a_file_is_not_read(
    omni: Omni, prepared: Prepare, lines: Lines
) -> None:
    root = omni({"Open-access/A": [item(1)]})
    (root / "QA_information" / "Open-access" / "._A.json").write_bytes(b"\0\5\x16\7")
    done = prepared("omnimedvqa", root)
    assert len(every(done, lines)) == 1
    assert set(done.report["made_from"]["files"]) == {"QA_information/Open-access/A.json"}


def test_one_picture_in_two_subsets_lies_on_one_side_of_the_cut(
    omni: Omni, prepared: Prepare, lines: Lines
) -> None:
    names = [f"{number:04}.png" for number in range(40)]
    subsets = {
        f"Open-access/{name}": [item(number, name) for number in range(40)] for name in ("A", "B")
    }
    root = omni(subsets)
    for name in names:
        (root / "Images" / "B" / name).write_bytes((root / "Images" / "A" / name).read_bytes())
    done = prepared("omnimedvqa", root)
    sides = {
        split: {line["image"].split("/")[-1] for line in lines(done.out / f"{split}.jsonl")}
        for split in ("train", "test")
    }
    assert not sides["train"] & sides["test"]
    cut = done.report["splits"]["cut"]
    assert cut["groups"] == 40
    assert "content of an image" in cut["rule"]


def test_the_open_part_is_the_default_and_ids_of_subsets_do_not_collide(
    omni: Omni, prepared: Prepare, lines: Lines
) -> None:
    root = omni(
        {
            "Open-access/A": [item(1, "A", question_id="0001")],
            "Open-access/B": [item(1, "B", question_id="0001")],
            "Restricted-access/C": [item(1, "C", question_id="0001")],
        }
    )
    assert set(every(prepared("omnimedvqa", root), lines)) == {
        "omnimedvqa_A_0001",
        "omnimedvqa_B_0001",
    }
    for access, expected in (("restricted", {"C"}), ("all", {"A", "B", "C"})):
        done = prepared("omnimedvqa", root, choices={"access": access}, overwrite=True)
        assert {record["dataset"] for record in every(done, lines).values()} == expected
    (root / "QA_information" / "Restricted-access" / "C.json").unlink()
    with pytest.raises(DataSetError, match="no JSON file in Restricted-access"):
        prepared("omnimedvqa", root, choices={"access": "restricted"}, overwrite=True)


def test_an_image_never_lies_on_both_sides_of_the_cut(
    omni: Omni, prepared: Prepare, lines: Lines
) -> None:
    items = [
        item(number, question_id=f"{number}-{k}", question=f"Question {k}?")
        for number in range(60)
        for k in range(2)
    ]
    done = prepared("omnimedvqa", omni({"Open-access/Some Set": items}))
    sides = [{line["image"] for line in lines(done.out / f"{s}.jsonl")} for s in ("train", "test")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60
    assert 3 <= len(sides[1]) <= 24  # 12 of 60 are expected
    assert done.report["splits"]["cut"]["fractions"] == {"test": 0.2}
