import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.datasets.definition import DataSetError
from medalign.pipeline.datasets.prepare import Prepared
from medalign.pipeline.manifest import read_manifest

Lines = Callable[[Path], list[dict[str, Any]]]
Item = Callable[..., dict[str, Any]]
Prepare = Callable[..., Prepared]


def test_the_release_becomes_three_manifests(
    slake_folder: Callable[..., Path], prepared: Prepare, lines: Lines
) -> None:
    root = slake_folder()
    done = prepared("slake", root)
    first, second = lines(done.out / "train.jsonl")
    assert first == {
        "id": "slake_1",
        "image": "xmlab1/source.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhich organ is abnormal, number 1?"},
            {"from": "gpt", "value": "Liver"},
        ],
        "answer_type": "OPEN",
        "split": "train",
        "modality": "CT",
        "mask": "xmlab1/mask.png",
        "licence": "CC-BY-4.0",
        "location": "Abdomen",
        "content_type": "Abnormality",
        "base_type": "vqa",
        "q_lang": "en",
        "triple": ["vhead", "_", "_"],
        "img_id": 1,
        "qid": 1,
    }
    assert "mask" not in second  # its folder has none
    assert [line["id"] for line in lines(done.out / "val.jsonl")] == ["slake_3"]
    assert [line["id"] for line in lines(done.out / "test.jsonl")] == ["slake_4"]
    for name in ("train.jsonl", "val.jsonl", "test.jsonl"):
        for record in read_manifest(done.out / name):
            assert (root / "imgs" / record.images[0]).is_file()
    assert done.report["made_from"]["layout"] == "Slake1.0 release"
    assert done.report["images"] == str(root / "imgs")
    assert done.problems == 0


def test_the_download_from_hugging_face_is_known(
    slake_folder: Callable[..., Path], prepared: Prepare, slake_item: Item, lines: Lines
) -> None:
    root = slake_folder(
        {
            "train.json": [slake_item(1, 1)],
            "validation.json": [slake_item(2, 3)],
            "test.json": [slake_item(3, 4)],
        }
    )
    done = prepared("slake", root)
    assert done.report["made_from"]["layout"] == "Hugging Face download"
    assert lines(done.out / "val.jsonl")[0]["split"] == "val"


def test_english_alone_is_kept_unless_chosen_otherwise(
    slake_folder: Callable[..., Path], prepared: Prepare, slake_item: Item, lines: Lines
) -> None:
    root = slake_folder(
        {
            "train.json": [
                slake_item(1, 1),
                slake_item(2, 1, q_lang="zh", question="哪个器官异常", answer="肝"),
            ],
            "validate.json": [slake_item(3, 3, q_lang="zh")],
            "test.json": [slake_item(4, 4)],
        }
    )
    done = prepared("slake", root)
    assert [line["id"] for line in lines(done.out / "train.jsonl")] == ["slake_1"]
    assert done.report["left_out"]["by_rule"] == {"language zh": 2}
    assert done.report["splits"]["absent"] == ["val"]
    assert not (done.out / "val.jsonl").exists()
    assert done.problems == 0
    assert [each["name"] for each in done.report["published"]] == ["official", "LLaVA-Med"]

    everything = prepared("slake", root, choices={"language": "all"}, overwrite=True)
    assert everything.report["counts"]["total"]["records"] == 4
    chinese = lines(done.out / "train.jsonl")[1]
    assert chinese["conversations"][0]["value"] == "<image>\n哪个器官异常"
    assert [each["name"] for each in everything.report["published"]] == ["official"]


def test_closed_answers_that_are_not_yes_or_no_stay_closed(
    slake_folder: Callable[..., Path], prepared: Prepare, slake_item: Item, lines: Lines
) -> None:
    items = [
        slake_item(1, 1, answer="Left", answer_type="CLOSED"),
        slake_item(2, 1, answer="Yes", answer_type="closed "),
        slake_item(3, 1, answer="No", answer_type="BOTH"),
    ]
    root = slake_folder({"train.json": items, "validate.json": [], "test.json": []})
    done = prepared("slake", root)
    kinds = {line["id"]: line["answer_type"] for line in lines(done.out / "train.jsonl")}
    assert kinds == {"slake_1": "CLOSED", "slake_2": "CLOSED"}
    assert done.report["left_out"]["unusable"] == {
        "its answer_type is neither OPEN nor CLOSED": {"count": 1, "first": ["train.json item 3"]}
    }


def test_a_language_that_is_not_said_is_a_problem(
    slake_folder: Callable[..., Path], prepared: Prepare, slake_item: Item
) -> None:
    items = [slake_item(1, 1), slake_item(2, 1, q_lang=None)]
    done = prepared(
        "slake", slake_folder({"train.json": items, "validate.json": [], "test.json": []})
    )
    assert done.report["left_out"]["unusable"]["language unknown"]["count"] == 1
    assert done.problems == 1


def test_images_that_are_still_packed_are_named(
    slake_folder: Callable[..., Path], prepared: Prepare
) -> None:
    root = slake_folder()
    (root / "imgs").rename(root / "elsewhere")
    with pytest.raises(DataSetError, match=r"imgs: no such folder; the images of SLAKE 1.0"):
        prepared("slake", root)
    (root / "imgs.zip").write_bytes(b"PK")
    with pytest.raises(DataSetError, match=r"imgs.zip: is still packed; unpack it into "):
        prepared("slake", root)
    done = prepared("slake", root, images=root / "elsewhere")
    assert done.report["images"] == str(root / "elsewhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not valid JSON at line 1"),
        (b"[{]", "is not valid JSON at line 1"),
        (b'{"a": 1}', "must be a list of objects"),
        (b"[1]", "item 1 is no object"),
        (b'["\xff"]', "is not UTF-8 at byte 3"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_file_that_is_no_list_of_questions_is_named(
    slake_folder: Callable[..., Path], prepared: Prepare, text: bytes, said: str
) -> None:
    root = slake_folder()
    (root / "validate.json").write_bytes(text)
    with pytest.raises(DataSetError, match=rf"validate.json: {said}"):
        prepared("slake", root)


def test_a_byte_order_mark_is_no_problem(
    slake_folder: Callable[..., Path], prepared: Prepare, slake_item: Item
) -> None:
    root = slake_folder()
    text = json.dumps([slake_item(3, 3)])
    (root / "validate.json").write_text(text, encoding="utf-8-sig")
    assert prepared("slake", root).report["counts"]["val"]["records"] == 1
