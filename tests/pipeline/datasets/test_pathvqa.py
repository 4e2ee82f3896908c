import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.datasets.definition import DataSetError
from medalign.pipeline.datasets.plain_pickle import PickleRefusedError
from medalign.pipeline.datasets.prepare import Prepared

Lines = Callable[[Path], list[dict[str, Any]]]
Item = Callable[..., dict[str, Any]]
Prepare = Callable[..., Prepared]
Folder = Callable[..., Path]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_official_release_becomes_three_manifests(
    pathvqa_folder: Folder, prepared: Prepare, path_item: Item, lines: Lines, protocol: int
) -> None:
    root = pathvqa_folder(
        {
            "train": [
                path_item("train_0001", "is the epithelium intact?", "no"),
                path_item("train_0001", "what is shown?", "thyroid"),
                path_item("train_0002", "is it larger?", "Yes"),
                path_item("train_0002", "how many nuclei?", 2),
                path_item("train_0002", "is it, or not?", "no."),
            ]
        },
        protocol,
    )
    done = prepared("pathvqa", root)
    records = lines(done.out / "train.jsonl")
    assert [record["answer_type"] for record in records] == [
        "CLOSED",
        "OPEN",
        "CLOSED",
        "OPEN",
        "OPEN",
    ]
    assert records[0]["image"] == "train/train_0001.jpg"
    assert records[3]["conversations"][1]["value"] == "2"
    assert all(re.fullmatch(r"pathvqa_[0-9a-f]{16}", record["id"]) for record in records)
    assert lines(done.out / "val.jsonl")[0]["image"] == "val/val_0000.jpg"
    assert lines(done.out / "test.jsonl")[0]["image"] == "test/test_0000.jpg"
    assert done.report["licence"]["terms"].endswith("do not pass them on")
    assert done.problems == 0


def test_an_id_follows_from_what_is_asked_and_not_from_its_place(
    pathvqa_folder: Folder, prepared: Prepare, path_item: Item, lines: Lines, tmp_path: Path
) -> None:
    items = [path_item("train_0001", f"question {number}?") for number in range(3)]
    prepared("pathvqa", pathvqa_folder({"train": items}))
    before = {
        line["conversations"][0]["value"]: line["id"]
        for line in lines(tmp_path / "out/train.jsonl")
    }
    (tmp_path / "pvqa").rename(tmp_path / "old")
    done = prepared("pathvqa", pathvqa_folder({"train": items[::-1]}), overwrite=True)
    after = {
        line["conversations"][0]["value"]: line["id"] for line in lines(done.out / "train.jsonl")
    }
    assert before == after
    assert len(set(before.values())) == 3


def test_repeated_triplets_and_contradictions_are_counted_and_kept(
    pathvqa_folder: Folder, prepared: Prepare, path_item: Item, lines: Lines
) -> None:
    root = pathvqa_folder(
        {
            "train": [
                path_item("train_0001", "is it intact?", "no"),
                path_item("train_0001", "is it intact?", "no"),
                path_item("train_0001", "Is it  intact?", "yes"),
                path_item("train_0001", "is it intact? ", "No."),
                path_item("train_0002", "is it intact?", "yes"),
            ]
        }
    )
    done = prepared("pathvqa", root)
    first, second, third, fourth, _ = [line["id"] for line in lines(done.out / "train.jsonl")]
    assert second == f"{first}_2"
    duplicates = done.report["duplicates"]
    assert duplicates["same_in_a_split"] == {"count": 1, "first": [[first, second]]}
    assert duplicates["contradictions"] == {"count": 1, "first": [[first, third]]}
    assert fourth not in (first, second)


def test_an_image_with_another_ending_is_found(
    pathvqa_folder: Folder, prepared: Prepare, lines: Lines
) -> None:
    root = pathvqa_folder({})
    folder = root / "images" / "val"
    (folder / "val_0000.jpg").rename(folder / "val_0000.png")
    assert lines(prepared("pathvqa", root).out / "val.jsonl")[0]["image"] == "val/val_0000.png"


def test_what_cannot_be_used_is_counted_by_reason(
    pathvqa_folder: Folder, prepared: Prepare, path_item: Item
) -> None:
    root = pathvqa_folder(
        {
            "train": [
                path_item("train_0001"),
                ["train_0001", "a", "b"],
                {"image": None, "question": "a", "answer": "b"},
                path_item("train_0002", answer=" "),
                path_item("train_0003", question="<image> what?"),
                path_item("train_0004"),
                path_item("train_0004", "and here?"),
                path_item("../train/train_0001"),
            ]
        }
    )
    (root / "images" / "train" / "train_0004.jpg").unlink()
    done = prepared("pathvqa", root)
    unusable = done.report["left_out"]["unusable"]
    assert {reason: listed["count"] for reason, listed in unusable.items()} == {
        "it is no dict of image, question and answer": 1,
        "it names no image": 1,
        "the answer is blank": 1,
        "the question holds <image>": 1,
        "its image is not there": 2,
        "its image path must be relative, with / between folders and no `..`": 1,
    }
    assert unusable["its image is not there"]["first"][0] == (
        "train_qa.pkl item 6: train/train_0004.jpg"
    )
    assert done.problems == 7


def test_a_name_with_its_ending_is_the_file_of_that_name(
    pathvqa_folder: Folder, path_item: Any, prepared: Prepare, lines: Lines
) -> None:
    names = ["train_1", "train_1.jpg", "train_2.jpg"]
    root = pathvqa_folder({"train": [path_item(name) for name in names]})
    folder = root / "images" / "train"
    (folder / "train_1.jpg.jpg").unlink()
    (folder / "train_2.jpg.jpg").unlink()
    done = prepared("pathvqa", root)
    assert [each["image"] for each in lines(done.out / "train.jsonl")] == ["train/train_1.jpg"] * 2
    assert done.report["left_out"]["unusable"]["its image is not there"]["first"] == [
        "train_qa.pkl item 3: train/train_2.jpg"
    ]


def test_a_pickle_that_asks_for_more_than_data_is_refused(
    pathvqa_folder: Folder, prepared: Prepare, tmp_path: Path
) -> None:
    root = pathvqa_folder({})
    path = root / "qas" / "val" / "val_qa.pkl"
    path.write_bytes(f"(S'touch {tmp_path / 'ran'}'\nios\nsystem\n.".encode())
    with pytest.raises(PickleRefusedError, match=r"val_qa.pkl: asks for os.system"):
        prepared("pathvqa", root)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_a_pickle_of_something_else_is_named(pathvqa_folder: Folder, prepared: Prepare) -> None:
    root = pathvqa_folder({"test": {"image": "test_0000"}})
    with pytest.raises(DataSetError, match=r"test_qa.pkl: must be a list of questions"):
        prepared("pathvqa", root)


def test_parquet_has_a_validation_split(
    parquet_folder: Folder, prepared: Prepare, lines: Lines
) -> None:
    rows = [(b"\xff\xd8\xffone", None, "is it normal?", "yes")]
    root = parquet_folder(
        {f"{split}-00000-of-00001-ab": rows for split in ("train", "validation", "test")}
    )
    done = prepared("pathvqa", root)
    assert [lines(done.out / f"{s}.jsonl")[0]["split"] for s in ("train", "val", "test")] == [
        "train",
        "val",
        "test",
    ]
    assert done.report["counts"]["total"]["images"] == 1
    assert [each["name"] for each in done.report["published"]] == ["Hugging Face"]
