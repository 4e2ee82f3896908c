"""What a run finds in its output folder: earlier manifests, drafts of killed runs, old images."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.datasets import records
from medalign.pipeline.datasets.definition import DataSetError
from medalign.pipeline.datasets.prepare import Prepared

Folder = Callable[..., Path]
Item = Callable[..., dict[str, Any]]
Prepare = Callable[..., Prepared]
Lines = Callable[[Path], list[dict[str, Any]]]

ROW = (b"\xff\xd8\xffone", None, "is it normal?", "yes")


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for an image fails: the message must come before."""

    def look(*_: Any) -> str:
        raise AssertionError

    monkeypatch.setattr(records, "file_problem", look)


def test_another_image_folder_does_not_take_records_away(
    slake_folder: Folder, prepared: Prepare, lines: Lines, tmp_path: Path
) -> None:
    root = slake_folder()
    out = prepared("slake", root).out
    other = tmp_path / "other"
    (root / "imgs" / "xmlab1").rename(tmp_path / "xmlab1")
    (other / "xmlab1").parent.mkdir()
    (tmp_path / "xmlab1").rename(other / "xmlab1")
    with pytest.raises(DataSetError) as refused:
        prepared("slake", root, images=other)
    assert str(refused.value).splitlines()[1:] == [f"  images: {root / 'imgs'} before, {other} now"]
    assert len(lines(out / "train.jsonl")) == 2
    assert (
        len(lines(prepared("slake", root, images=other, overwrite=True).out / "train.jsonl")) == 1
    )


def test_images_that_went_do_not_take_records_away(
    slake_folder: Folder, prepared: Prepare, lines: Lines
) -> None:
    root = slake_folder()
    out = prepared("slake", root).out
    (root / "imgs" / "xmlab2" / "source.jpg").unlink()
    with pytest.raises(DataSetError) as refused:
        prepared("slake", root)
    first, second = str(refused.value).splitlines()
    assert first.startswith(f"{out}: 1 record that an earlier run made cannot be made now, slake_2")
    assert second == "  1 item: its image is not there (train.json item 2: xmlab2/source.jpg)"
    assert len(lines(out / "train.jsonl")) == 2
    assert prepared("slake", root, overwrite=True).problems == 1


def test_a_folder_of_images_may_move(slake_folder: Folder, prepared: Prepare) -> None:
    root = slake_folder()
    prepared("slake", root)
    moved = root.rename(root.with_name("Slake"))
    done = prepared("slake", moved)
    assert done.state == "replaced"
    assert done.images.samefile(moved / "imgs")


def test_an_edited_manifest_is_refused_before_anything_is_read(
    slake_folder: Folder, prepared: Prepare, request: pytest.FixtureRequest
) -> None:
    root = slake_folder()
    (prepared("slake", root).out / "val.jsonl").write_text("mine\n")
    request.getfixturevalue("unread")
    with pytest.raises(DataSetError, match=r"val.jsonl: was changed since it was prepared"):
        prepared("slake", root)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("name", ["train.jsonl", "report.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_the_place_of_a_file_is_named(
    slake_folder: Folder, prepared: Prepare, tmp_path: Path, name: str, overwrite: bool
) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(DataSetError, match=rf"out/{name}: is a folder; move it away"):
        prepared("slake", slake_folder(), overwrite=overwrite)


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": [["train.jsonl", "00"]]},
        {"outputs": None},
        {"outputs": {"../elsewhere": "00"}},
        {"made_from": [["options", {}]]},
        {"images": 5},
    ],
)
def test_a_report_of_another_shape_is_not_ours(
    slake_folder: Folder, prepared: Prepare, changes: dict[str, Any]
) -> None:
    root = slake_folder()
    path = prepared("slake", root).out / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataSetError, match=r"report.json: is no report of `data prepare`"):
        prepared("slake", root)


def test_drafts_of_runs_that_were_killed_go_and_nothing_else(
    slake_folder: Folder, prepared: Prepare, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("train.jsonl.123.partial", "report.json.4.partial", "mine.5.partial"):
        (out / name).write_text("a report")
    (out / "images.6.partial").symlink_to(tmp_path)
    with (out / "val.jsonl.7.partial").open("wb") as file:
        # As a run does that is alive.
        fcntl.flock(file, fcntl.LOCK_EX)
        prepared("slake", slake_folder())
    left = {path.name for path in out.iterdir() if path.name.endswith(".partial")}
    assert left == {"mine.5.partial", "val.jsonl.7.partial"}


def test_a_run_that_was_killed_between_its_manifests_is_completed(
    slake_folder: Folder, prepared: Prepare
) -> None:
    root = slake_folder()
    image = root / "imgs" / "xmlab2" / "source.jpg"
    image.rename(root / "kept.jpg")
    out = prepared("slake", root).out
    before = (out / "report.json").read_bytes()
    (root / "kept.jpg").rename(image)
    prepared("slake", root)
    (out / "report.json").rename(out / "report.json.9.partial")
    (out / "report.json").write_bytes(before)
    assert prepared("slake", root).state == "replaced"


def test_images_of_another_set_go_with_its_manifests(
    parquet_folder: Folder, slake_folder: Folder, prepared: Prepare
) -> None:
    hub = parquet_folder({"train-00000-of-00001": [ROW], "test-00000-of-00001": [ROW]})
    images = prepared("vqa-rad", hub).out / "images"
    (one,) = images.rglob("*.jpg")
    (one.parent / f"{one.name}.8.partial").write_bytes(b"cut")
    (images / "mine.png").write_bytes(b"mine")
    prepared("vqa-rad", hub, overwrite=True)
    assert {path.name for path in images.rglob("*") if path.is_file()} == {one.name, "mine.png"}
    (images / "mine.png").unlink()
    root = slake_folder()
    done = prepared("slake", root, overwrite=True)
    assert done.images.samefile(root / "imgs")
    before = sorted((root / "imgs").rglob("*"))
    done = prepared("vqa-rad", hub, overwrite=True)
    assert sorted((root / "imgs").rglob("*")) == before
    assert [path.name for path in done.images.rglob("*.jpg")] == [one.name]


def test_a_folder_that_is_named_as_that_of_the_images_stays_whole(
    parquet_folder: Folder, rad_repack: Folder, rad_item: Item, prepared: Prepare
) -> None:
    hub = parquet_folder({"train-00000-of-00001": [ROW], "test-00000-of-00001": [ROW]})
    images = prepared("vqa-rad", hub).out / "images"
    (one,) = images.rglob("*.jpg")
    (images / "synpic1.jpg").write_bytes(b"another")
    root = rad_repack([rad_item(1)], [rad_item(2)])
    prepared("vqa-rad", root, images=images, overwrite=True)
    assert one.is_file()


def test_an_image_of_the_same_size_but_other_bytes_is_written_anew(
    parquet_folder: Folder, prepared: Prepare
) -> None:
    hub = parquet_folder({"train-00000-of-00001": [ROW], "test-00000-of-00001": [ROW]})
    (image,) = (prepared("vqa-rad", hub).out / "images").rglob("*.jpg")
    image.write_bytes(bytes(len(ROW[0])))
    prepared("vqa-rad", hub)
    assert image.read_bytes() == ROW[0]
