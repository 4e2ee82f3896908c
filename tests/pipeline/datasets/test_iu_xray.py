"""IU-Xray: CARES's questions with their odd answers, and R2Gen's reports."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.datasets.definition import DataSetError
from medalign.pipeline.datasets.formats import leading_yes_no
from medalign.pipeline.datasets.iu_xray import QUESTION, patient_of, study_of
from medalign.pipeline.datasets.prepare import Prepared, PrepareOptions, prepare
from medalign.pipeline.datasets.registry import DATA_SETS
from medalign.pipeline.hygiene.leakage import find_leaks, read_side
from medalign.runtime.progress import NoProgress

Lines = Callable[[Path], list[dict[str, Any]]]
Prepare = Callable[..., Prepared]
SUFFIX = " Please choose from the following two options: [yes, no]\n<image>"


def asked(answer: str, image: str = "CXR1_IM-0001/0.png", number: int = 0) -> dict[str, Any]:
    """One line of CARES's file."""
    question = f"Is there an effusion, {number}?{SUFFIX}"
    return {
        "question": question,
        "answer": answer,
        "image": image,
        "question_id": 0,
        "text": question,
    }


def study(name: str, split: str = "train", report: str = "Heart size normal. XXXX clear.") -> Any:
    """One item of R2Gen's annotation."""
    paths = [f"{name}/0.png", f"{name}/1.png"]
    return {"id": name, "report": report, "image_path": paths, "split": split}


def draw(folder: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"made up")


@pytest.fixture
def cares(tmp_path: Path) -> Callable[..., Path]:
    """Make CARES's folder and R2Gen's images beside it."""

    def make(*items: dict[str, Any], folder: str = "CARES/data/IU-Xray") -> Path:
        root = tmp_path / folder
        root.mkdir(parents=True)
        text = "".join(json.dumps(item) + "\n" for item in items)
        (root / "iuxray_factuality.jsonl").write_text(text)
        draw(tmp_path / "iu_xray" / "images", [item["image"] for item in items])
        return root

    return make


@pytest.fixture
def r2gen(tmp_path: Path) -> Callable[..., Path]:
    """Make R2Gen's folder: `r2gen(train=[...], val=[...], test=[...])`."""

    def make(**splits: list[dict[str, Any]]) -> Path:
        root = tmp_path / "iu_xray"
        root.mkdir(exist_ok=True)
        (root / "annotation.json").write_text(
            json.dumps({"train": [], "val": [], "test": []} | splits)
        )
        items = [item for items in splits.values() for item in items]
        draw(root / "images", [path for item in items for path in item["image_path"]])
        return root

    return make


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        ("Yes.", "Yes"),
        ("No", "No"),
        ("- No.", "No"),
        ("no (since the silhouette is normal).", "No"),
        ("No, based on the report.", "No"),
        ("No information on bones is provided.", None),
        ("Not mentioned, hence neither yes nor no.", None),
        ("The report does not say, so the answer would be no.", None),
        ("Nothing", None),
        ("", None),
    ],
)
def test_answers_come_down_to_their_first_word(answer: str, meant: str | None) -> None:
    assert leading_yes_no(answer) == meant


def test_questions_of_cares_become_closed_records(
    cares: Callable[..., Path], prepared: Prepare, lines: Lines, tmp_path: Path
) -> None:
    root = cares(asked("- No."), asked("No information is given.", number=1))
    done = prepared("iu-xray-vqa", root, images=tmp_path / "iu_xray" / "images")
    path = next(done.out.glob("*.jsonl"))
    (record,) = lines(path)
    assert record["conversations"] == [
        {
            "from": "human",
            "value": "<image>\nIs there an effusion, 0? "
            "Please choose from the following two options: [yes, no]",
        },
        {"from": "gpt", "value": "No"},
    ]
    assert (record["answer_type"], record["image"]) == ("CLOSED", "CXR1_IM-0001/0.png")
    assert (record["patient"], record["study"]) == ("CXR1", "CXR1_IM-0001")
    assert "options" not in record
    assert done.report["left_out"]["unusable"] == {
        "its answer begins with neither yes nor no": {
            "count": 1,
            "first": ["iuxray_factuality.jsonl line 2"],
        }
    }


def test_ids_differ_though_every_question_id_is_0(
    cares: Callable[..., Path], prepared: Prepare, lines: Lines, tmp_path: Path
) -> None:
    items = [
        asked("Yes", f"CXR{patient}_IM-000{k}/0.png", number)
        for patient in range(40)
        for k in range(2)
        for number in range(2)
    ]
    root = cares(*items)
    done = prepared("iu-xray-vqa", root.parents[1], images=tmp_path / "iu_xray" / "images")
    train, test = (lines(done.out / f"{split}.jsonl") for split in ("train", "test"))
    assert len({record["id"] for record in train + test}) == len(items)
    assert not done.report["ids"]["repeated"]["count"]
    sides = [{record["patient"] for record in side} for side in (train, test)]
    assert not sides[0] & sides[1]
    assert done.report["splits"]["cut"]["groups"] == 40


def test_a_line_that_is_no_object_is_an_error_that_names_it(
    cares: Callable[..., Path], prepared: Prepare, tmp_path: Path
) -> None:
    root = cares(asked("Yes"))
    path = root / "iuxray_factuality.jsonl"
    path.write_text(path.read_text() + "\n[1]\n")
    with pytest.raises(DataSetError, match=r"factuality\.jsonl: line 3 is no JSON object"):
        prepared("iu-xray-vqa", root, images=tmp_path / "iu_xray" / "images")


def test_a_study_is_one_record_with_its_first_image(
    r2gen: Callable[..., Path], prepared: Prepare, lines: Lines
) -> None:
    swapped = study("CXR2_IM-0002-1001") | {
        "image_path": ["CXR2_IM-0002-1001/1.png", "CXR2_IM-0002-1001/0.png"]
    }
    root = r2gen(
        train=[study("CXR1_IM-0001"), swapped],
        val=[study("CXR3_IM-0003", "val")],
        test=[study("CXR4_IM-0004", "test", " ")],
    )
    done = prepared("iu-xray-report", root)
    train = lines(done.out / "train.jsonl")
    assert [record["image"] for record in train] == [
        "CXR1_IM-0001/0.png",
        "CXR2_IM-0002-1001/0.png",
    ]
    assert train[0]["id"] == "iu-xray-report_CXR1_IM-0001"
    assert train[0]["conversations"][0]["value"] == f"<image>\n{QUESTION.default}"
    assert train[0]["conversations"][1]["value"] == train[0]["report"]
    assert train[0]["report"] == "Heart size normal. XXXX clear."
    assert (train[1]["patient"], train[1]["study"]) == ("CXR2", "CXR2_IM-0002-1001")
    assert "answer_type" not in train[0]
    assert done.report["splits"]["absent"] == ["test"]
    assert list(done.report["left_out"]["unusable"]) == ["the answer is blank"]
    assert done.report["made_from"]["options"]["question"] == QUESTION.default


def test_questions_and_reports_name_patients_and_studies_alike(
    cares: Callable[..., Path], r2gen: Callable[..., Path], tmp_path: Path
) -> None:
    questions = [asked("Yes", f"CXR{patient}_IM-0001/0.png") for patient in range(20)]
    root, reports = cares(*questions), r2gen(test=[study("CXR3_IM-0001"), study("CXR99_IM-0001")])
    asked_of, told_of = tmp_path / "vqa", tmp_path / "reports"
    images = reports / "images"
    asks = prepare(
        DATA_SETS["iu-xray-vqa"], root, asked_of, PrepareOptions(images=images, test_fraction=0)
    )
    assert asks.report["splits"]["absent"] == ["val", "test"]
    prepare(DATA_SETS["iu-xray-report"], reports, told_of, PrepareOptions())
    train, test = (
        read_side(path, None) for path in (asked_of / "train.jsonl", told_of / "test.jsonl")
    )
    leaks = find_leaks(train, test, {}, 16, NoProgress()).all
    assert {(leak.kind, leak.what) for leak in leaks} == {
        ("file", "CXR3_IM-0001/0.png"),
        ("patient", "CXR3"),
        ("study", "CXR3_IM-0001"),
    }


def test_each_view_can_be_a_record_and_the_question_another(
    r2gen: Callable[..., Path], prepared: Prepare, lines: Lines
) -> None:
    root = r2gen(train=[study("CXR1_IM-0001")])
    choices = {"views": "each", "question": "Report."}
    train = lines(prepared("iu-xray-report", root, choices=choices).out / "train.jsonl")
    assert [(record["id"], record["image"]) for record in train] == [
        ("iu-xray-report_CXR1_IM-0001", "CXR1_IM-0001/0.png"),
        ("iu-xray-report_CXR1_IM-0001_1", "CXR1_IM-0001/1.png"),
    ]
    assert train[1]["conversations"][0]["value"] == "<image>\nReport."


def test_a_list_of_open_i_items_is_a_test_split(
    prepared: Prepare, lines: Lines, tmp_path: Path
) -> None:
    item = {
        "id": "open_i_12",
        "image": ["CXR12_IM-0034-1001.png", "CXR12_IM-0034-2001.png"],
        "findings": "Clear.",
        "impression": "Normal.",
    }
    root = tmp_path / "open_i"
    draw(root / "images", item["image"])
    (root / "test.json").write_text(json.dumps([item]))
    (record,) = lines(prepared("iu-xray-report", root).out / "test.jsonl")
    assert (record["report"], record["impression"]) == ("Clear.", "Normal.")
    assert (record["patient"], record["study"]) == ("CXR12", "open_i_12")
    assert record["image"] == "CXR12_IM-0034-1001.png"


def test_the_annotation_of_the_other_set_is_refused_by_name(
    r2gen: Callable[..., Path], prepared: Prepare
) -> None:
    root = r2gen(train=[study("CXR1_IM-0001")])
    with pytest.raises(DataSetError, match="prepare iu-xray-report"):
        prepared("mimic-cxr-report", root)
    whole = json.loads((root / "annotation.json").read_text())
    broken: list[Any] = [[], whole | {"val": None}, whole | {"val": 5}, {"val": {}}]
    for other in broken:
        (root / "annotation.json").write_text(json.dumps(other))
        with pytest.raises(DataSetError, match="lists train, val and test"):
            prepared("iu-xray-report", root)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("CXR30_IM-1405/0.png", "CXR30_IM-1405"),
        ("deep/CXR3595_IM-1773-0001/1.png", "CXR3595_IM-1773-0001"),
        ("CXR12_IM-0034-1001.png", "CXR12_IM-0034-1001"),
        ("images/0.png", None),
        ("0.png", None),
    ],
)
def test_studies_and_patients_are_named_by_the_path(path: str, name: str | None) -> None:
    assert study_of(path) == name
    if name:
        assert patient_of(name) == name.split("_")[0]
