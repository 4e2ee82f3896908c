import builtins
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.datasets.definition import DataSetError
from medalign.pipeline.datasets.prepare import Prepared

pytest.importorskip("pyarrow")

Lines = Callable[[Path], list[dict[str, Any]]]
Prepare = Callable[..., Prepared]
Folder = Callable[..., Path]

ONE, TWO, PNG = b"\xff\xd8\xffone", b"\xff\xd8\xfftwo", b"\x89PNG\r\n\x1a\n"
ROW = (ONE, None, "is it normal?", "yes")


def test_bytes_are_written_once_and_as_they_are(
    parquet_folder: Folder, prepared: Prepare, lines: Lines
) -> None:
    rows = [
        ROW,
        (ONE, "other.png", "which side?", "left"),
        (TWO, None, "why?", "because"),
        (PNG, None, "who?", "me"),
        (b"strange", "scan.TIFF", "what?", "that"),
        (b"stranger", None, "what now?", "this"),
    ]
    root = parquet_folder({"train-00000-of-00001": rows, "test-00000-of-00001": [ROW]})
    done = prepared("vqa-rad", root)
    images = [line["image"] for line in lines(done.out / "train.jsonl")]
    one = hashlib.sha256(ONE).hexdigest()
    assert images[:2] == [f"{one[:2]}/{one}.jpg"] * 2
    assert [Path(image).suffix for image in images[2:]] == [".jpg", ".png", ".tiff", ".img"]
    written = sorted(path for path in (done.out / "images").rglob("*") if path.is_file())
    assert [path.relative_to(done.out / "images").as_posix() for path in written] == sorted(
        set(images)
    )
    for row, image in zip(rows, images, strict=True):
        assert (done.out / "images" / image).read_bytes() == row[0]
    assert done.report["images"] == str(done.out / "images")


def test_shards_are_read_in_order_and_the_folder_data_will_do(
    parquet_folder: Folder, prepared: Prepare, lines: Lines
) -> None:
    def row(number: int) -> tuple[Any, ...]:
        return (ONE, None, f"question {number}?", "yes")

    root = parquet_folder(
        {
            "train-00001-of-00002-bb": [row(5), row(6)],
            "train-00000-of-00002-aa": [row(number) for number in range(5)],
            "test-00000-of-00001-cc": [row(7)],
        }
    )
    whole = prepared("vqa-rad", root)
    asked = [line["conversations"][0]["value"] for line in lines(whole.out / "train.jsonl")]
    assert asked == [f"<image>\nquestion {number}?" for number in range(7)]
    train = (whole.out / "train.jsonl").read_bytes()
    inner = prepared("vqa-rad", root / "data", overwrite=True)
    assert (inner.out / "train.jsonl").read_bytes() == train


def test_a_missing_shard_is_named(parquet_folder: Folder, prepared: Prepare) -> None:
    root = parquet_folder({"train-00000-of-00003": [ROW], "test-00000-of-00001": [ROW]})
    with pytest.raises(DataSetError, match=r"file 00001 of 00003 of train is missing"):
        prepared("vqa-rad", root)


@pytest.mark.parametrize("other", ["train-00000-of-00001-other", "train-00001-of-00002"])
def test_files_of_two_downloads_are_refused(
    parquet_folder: Folder, prepared: Prepare, other: str
) -> None:
    root = parquet_folder(
        {"train-00000-of-00001": [ROW], other: [ROW], "test-00000-of-00001": [ROW]}
    )
    with pytest.raises(DataSetError, match=r"does not belong to the other files of its split"):
        prepared("vqa-rad", root)


def test_another_set_in_the_same_form_is_refused(parquet_folder: Folder, prepared: Prepare) -> None:
    root = parquet_folder(
        {f"{split}-00000-of-00001": [ROW] for split in ("train", "validation", "test")}
    )
    with pytest.raises(DataSetError, match=r"validation-.*: is no file of this data set"):
        prepared("vqa-rad", root)


def test_a_name_that_tells_no_number_is_refused(parquet_folder: Folder, prepared: Prepare) -> None:
    root = parquet_folder({"train-all": [ROW], "test-00000-of-00001": [ROW]})
    with pytest.raises(DataSetError, match=r"must be named like train-00000-of-00001"):
        prepared("vqa-rad", root)


def test_rows_without_image_question_or_answer_are_left_out(
    parquet_folder: Folder, prepared: Prepare
) -> None:
    rows = [
        ROW,
        (None, "only/a/path.jpg", "why?", "because"),
        (b"", None, "why?", "because"),
        (ONE, None, None, "because"),
        (ONE, None, "why?", None),
    ]
    root = parquet_folder({"train-00000-of-00001": rows, "test-00000-of-00001": [ROW]})
    done = prepared("vqa-rad", root)
    assert {why: each["count"] for why, each in done.report["left_out"]["unusable"].items()} == {
        "the file does not hold its image": 2,
        "the question is blank": 1,
        "the answer is blank": 1,
    }
    assert done.report["left_out"]["unusable"]["the file does not hold its image"]["first"] == [
        "train-00000-of-00001.parquet row 2",
        "train-00000-of-00001.parquet row 3",
    ]


def test_rows_of_other_kinds_are_left_out(parquet_folder: Folder, prepared: Prepare) -> None:
    import pyarrow
    from pyarrow import parquet

    root = parquet_folder({"train-00000-of-00001": [ROW], "test-00000-of-00001": [ROW]})
    answers = pyarrow.array([b"yes", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    texts = pyarrow.array([{"bytes": "text", "path": "a.png"}] * 2)
    binary = pyarrow.array([{"bytes": ONE, "path": "a.png"}] * 2)
    for name, images in (("train", binary), ("test", texts)):
        columns = {"image": images, "question": ["a?", "b?"], "answer": answers}
        path = root / "data" / f"{name}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.table(columns), path)
    (root / "data" / "._train-00000-of-00001.parquet").write_bytes(b"\0\5\x16\7")
    done = prepared("vqa-rad", root)
    assert done.report["counts"]["total"]["records"] == 1
    unusable = done.report["left_out"]["unusable"]
    assert {why: listed["count"] for why, listed in unusable.items()} == {
        "its text is not UTF-8": 2,
        "the file does not hold its image": 1,
    }


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no parquet", "cannot be read as Parquet"),
        (b"", "cannot be read as Parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_is_no_parquet_is_named(
    parquet_folder: Folder, prepared: Prepare, data: bytes, said: str
) -> None:
    root = parquet_folder({"train-00000-of-00001": [ROW], "test-00000-of-00001": [ROW]})
    (root / "data" / "train-00000-of-00001.parquet").write_bytes(data)
    with pytest.raises(DataSetError, match=rf"train-00000-of-00001.parquet: {said}"):
        prepared("vqa-rad", root)


def test_a_damaged_page_is_named(parquet_folder: Folder, prepared: Prepare) -> None:
    rows = [(os.urandom(5000), None, f"question {number}?", "yes") for number in range(4)]
    root = parquet_folder({"train-00000-of-00001": rows, "test-00000-of-00001": [ROW]})
    path = root / "data" / "train-00000-of-00001.parquet"
    data = path.read_bytes()
    path.write_bytes(b"PAR1" + b"\xff" * 300 + data[304:])
    with pytest.raises(DataSetError, match=r"train-00000-of-00001.parquet: cannot be read as"):
        prepared("vqa-rad", root)


def test_columns_that_are_not_there_are_named(parquet_folder: Folder, prepared: Prepare) -> None:
    import pyarrow
    from pyarrow import parquet

    root = parquet_folder({"train-00000-of-00001": [ROW], "test-00000-of-00001": [ROW]})
    parquet.write_table(
        pyarrow.table({"image": ["a"], "text": ["b"]}),
        root / "data" / "test-00000-of-00001.parquet",
    )
    with pytest.raises(DataSetError, match=r"has no column question, answer, only image, text"):
        prepared("vqa-rad", root)


def test_without_pyarrow_the_message_says_what_to_install(
    parquet_folder: Folder, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = parquet_folder({"train-00000-of-00001": [ROW], "test-00000-of-00001": [ROW]})
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataSetError, match=r"needs pyarrow; pip install 'medalign\[parquet\]'"):
        prepared("vqa-rad", root)


def test_images_that_are_there_are_not_written_again(
    parquet_folder: Folder, prepared: Prepare, lines: Lines
) -> None:
    root = parquet_folder({"train-00000-of-00001": [ROW], "test-00000-of-00001": [ROW]})
    done = prepared("vqa-rad", root)
    path = done.out / "images" / lines(done.out / "train.jsonl")[0]["image"]
    os.utime(path, (1, 1))
    prepared("vqa-rad", root)
    assert path.stat().st_mtime == 1
    path.write_bytes(b"cut")  # as after a machine went down
    prepared("vqa-rad", root)
    assert path.read_bytes() == ONE


def test_a_folder_of_images_makes_no_sense_with_parquet(
    parquet_folder: Folder, prepared: Prepare, tmp_path: Path
) -> None:
    root = parquet_folder({"train-00000-of-00001": [ROW], "test-00000-of-00001": [ROW]})
    with pytest.raises(DataSetError, match=r"leave --images away"):
        prepared("vqa-rad", root, images=tmp_path)
