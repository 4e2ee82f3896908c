import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.datasets.definition import (
    Choice,
    Counts,
    DataSet,
    DataSetError,
    Item,
    Layout,
    LeftOut,
    Published,
    Sample,
    Source,
)
from medalign.pipeline.datasets.prepare import Prepared, PrepareOptions, prepare
from medalign.pipeline.manifest import resolve_image
from medalign.runtime.files import Draft

Lines = Callable[[Path], list[dict[str, Any]]]
Prepare = Callable[..., Prepared]
Folder = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, also the ones that should not be there, but the link to images."""
    files = [path for path in folder.iterdir() if path.name != "images" or path.is_file()]
    return {path.name: path.read_bytes() for path in files}


def invented(items: Sequence[Item], **changes: Any) -> DataSet:
    """A data set that hands over just these items."""

    def read(_source: Source, _choices: Mapping[str, str]) -> Iterator[Item]:
        yield from items

    known: dict[str, Any] = {
        "name": "invented",
        "title": "Invented",
        "licence": "CC0-1.0",
        "terms": "none",
        "layouts": (Layout(name="folder", files=("list.txt",), images="."),),
        "published": (),
        "split_rule": "cut here",
        "id_rule": "invented_<hash>",
        "read": read,
    }
    return DataSet(**(known | changes))


def sample(number: int = 1, **changes: Any) -> Sample:
    known: dict[str, Any] = {
        "where": f"list.txt item {number}",
        "split": "train",
        "images": ("a.png",),
        "question": f"question {number}?",
        "answer": "yes",
        "answer_type": "CLOSED",
    }
    return Sample(**(known | changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("list.txt", "a.png", "b.png"):
        (folder / name).write_bytes(name.encode())
    return folder


# A second run.


def test_a_second_run_finds_all_done_and_touches_nothing(
    slake_folder: Folder, prepared: Prepare
) -> None:
    root = slake_folder()
    first = prepared("slake", root)
    before = contents(first.out)
    for path in first.out.iterdir():
        os.utime(path, (1, 1))
    second = prepared("slake", root)
    assert (first.state, second.state) == ("written", "unchanged")
    assert second.report == first.report
    assert contents(second.out) == before
    assert {path.stat().st_mtime for path in second.out.iterdir()} == {1}


def test_two_runs_write_the_same_bytes(slake_folder: Folder, prepared: Prepare) -> None:
    root = slake_folder()
    first = contents(prepared("slake", root).out)
    for name in first:
        (root.parent.parent / "out" / name).unlink()
    assert contents(prepared("slake", root).out) == first
    assert set(first) == {"train.jsonl", "val.jsonl", "test.jsonl", "report.json"}


def test_the_images_are_where_the_manifests_are(slake_folder: Folder, prepared: Prepare) -> None:
    root = slake_folder()
    done = prepared("slake", root)
    assert done.images == done.out / "images"
    assert (done.images / "xmlab1" / "source.jpg").samefile(root / "imgs/xmlab1/source.jpg")
    (record, *_) = (done.out / "train.jsonl").read_text().splitlines()
    assert resolve_image(done.images, json.loads(record)["image"]).is_file()
    moved = (root / "imgs").rename(root / "elsewhere")  # the link hangs now, and is mended
    done = prepared("slake", root, images=moved, overwrite=True)
    assert done.images == done.out / "images"
    assert done.images.samefile(moved)


def test_a_link_to_other_images_is_led_to_these(slake_folder: Folder, prepared: Prepare) -> None:
    root = slake_folder()
    link = prepared("slake", root).out / "images"
    link.unlink()
    link.symlink_to(root)
    assert prepared("slake", root).images.samefile(root / "imgs")
    link.unlink()
    link.mkdir()
    (link / "mine.txt").write_text("mine")
    assert prepared("slake", root).images == root / "imgs"
    assert (link / "mine.txt").read_text() == "mine"


def test_what_is_called_images_already_stays(slake_folder: Folder, prepared: Prepare) -> None:
    root = slake_folder()
    taken = prepared("slake", root).out / "images"
    taken.unlink()
    taken.write_text("mine")
    assert prepared("slake", root).images == root / "imgs"
    assert taken.read_text() == "mine"


def test_other_options_are_refused_with_what_differs(
    slake_folder: Folder, prepared: Prepare
) -> None:
    root = slake_folder()
    before = contents(prepared("slake", root).out)
    with pytest.raises(DataSetError) as refused:
        prepared("slake", root, seed=3, choices={"language": "all"})
    assert str(refused.value).splitlines()[1:] == [
        "  options seed: 0 before, 3 now",
        "  options language: en before, all now",
    ]
    assert "name another --out, or pass --overwrite" in str(refused.value)
    assert contents(root.parent.parent / "out") == before


def test_other_sources_are_refused_and_can_be_overwritten(
    slake_folder: Folder, prepared: Prepare
) -> None:
    root = slake_folder()
    prepared("slake", root)
    (root / "validate.json").write_text(json.dumps([]))
    with pytest.raises(DataSetError, match=r"\n  files validate.json: [0-9a-f]{12}\.\.\. before"):
        prepared("slake", root)
    done = prepared("slake", root, overwrite=True)
    assert done.state == "replaced"
    assert set(contents(done.out)) == {"train.jsonl", "test.jsonl", "report.json"}


def test_a_manifest_that_was_edited_is_not_lost(slake_folder: Folder, prepared: Prepare) -> None:
    root = slake_folder()
    out = prepared("slake", root).out
    (out / "val.jsonl").write_text("mine\n")
    with pytest.raises(DataSetError, match=r"val.jsonl: was changed since it was prepared"):
        prepared("slake", root)
    assert (out / "val.jsonl").read_text() == "mine\n"
    assert prepared("slake", root, overwrite=True).state == "replaced"
    assert (out / "val.jsonl").read_text() != "mine\n"


@pytest.mark.parametrize("name", ["train.jsonl", "report.json"])
def test_a_file_of_somebody_else_is_not_lost(
    slake_folder: Folder, prepared: Prepare, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(DataSetError, match=rf"{name}: is (there already|no report of `data prep)"):
        prepared("slake", slake_folder())
    assert contents(tmp_path / "out") == {name: b"{}"}
    assert prepared("slake", tmp_path / "download", overwrite=True).state == "replaced"


def test_a_run_that_died_before_its_report_is_finished(
    slake_folder: Folder, prepared: Prepare
) -> None:
    root = slake_folder()
    out = prepared("slake", root).out
    before = contents(out)
    (out / "report.json").unlink()
    (out / "test.jsonl").unlink()
    prepared("slake", root)
    assert contents(out) == before


def test_images_that_came_later_are_taken_in(
    slake_folder: Folder, prepared: Prepare, lines: Lines
) -> None:
    root = slake_folder()
    image = root / "imgs" / "xmlab1" / "source.jpg"
    image.rename(root / "kept.jpg")
    lacking = prepared("slake", root)
    assert lacking.problems == 1
    assert [line["id"] for line in lines(lacking.out / "train.jsonl")] == ["slake_2"]
    (root / "kept.jpg").rename(image)
    whole = prepared("slake", root)
    assert (whole.state, whole.problems) == ("replaced", 0)
    assert [line["id"] for line in lines(whole.out / "train.jsonl")] == ["slake_1", "slake_2"]


# Stopped.


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_run_that_is_stopped_leaves_nothing_half(
    slake_folder: Folder,
    prepared: Prepare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    root = slake_folder()
    real = Draft.write

    def stop(draft: Draft, data: bytes) -> None:
        real(draft, data)
        if draft.path.name == "test.jsonl":
            raise error

    monkeypatch.setattr(Draft, "write", stop)
    with pytest.raises(type(error)):
        prepared("slake", root)
    assert contents(tmp_path / "out") == {}
    monkeypatch.setattr(Draft, "write", real)
    assert prepared("slake", root).state == "written"


class FullDisk(io.BytesIO):
    """Takes what is written, and says that the disk is full when it is to be kept."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = Draft(tmp_path / "train.jsonl")
    monkeypatch.setattr(Path, "open", lambda *_: FullDisk())
    with draft:
        draft.write(b"a")
        with pytest.raises(OSError, match=r"No space left on device: '.*/train.jsonl'"):
            draft.finish()


# What is where.


def test_the_folder_itself_its_parent_and_nothing_else_are_looked_at(
    slake_folder: Folder, prepared: Prepare, tmp_path: Path
) -> None:
    root = slake_folder()
    prepared("slake", root)
    assert prepared("slake", root.parent).state == "unchanged"
    with pytest.raises(DataSetError) as refused:
        prepared("slake", tmp_path)
    assert "looked for train.json (missing), validate.json (missing)" in str(refused.value)
    (root / "validate.json").unlink()
    with pytest.raises(DataSetError) as refused:
        prepared("slake", root)
    assert str(refused.value).splitlines() == [
        f"{root}: no known form of SLAKE 1.0 is there or in a folder in it",
        "  Slake1.0 release: looked for train.json, validate.json (missing), test.json",
        "  Hugging Face download: looked for train.json, validation.json (missing), test.json",
    ]


def test_two_forms_in_one_folder_are_refused(slake_folder: Folder, prepared: Prepare) -> None:
    root = slake_folder()
    (root / "validation.json").write_text("[]")
    with pytest.raises(DataSetError) as refused:
        prepared("slake", root)
    assert str(refused.value).splitlines()[1:] == [
        f"  {root}: Slake1.0 release",
        f"  {root}: Hugging Face download",
    ]


def test_a_folder_that_is_not_there_is_named(prepared: Prepare, tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"nowhere: is not there; it should be the folder of"):
        prepared("slake", tmp_path / "nowhere")
    (tmp_path / "slake.zip").write_bytes(b"PK")
    with pytest.raises(DataSetError, match=r"slake.zip: is a file, name the folder"):
        prepared("slake", tmp_path / "slake.zip")


def test_an_output_that_is_a_file_is_refused(
    slake_folder: Folder, prepared: Prepare, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DataSetError, match=r"out: is a file; --out names the folder"):
        prepared("slake", slake_folder())


def test_choices_that_cannot_be_made_are_named(slake_folder: Folder, prepared: Prepare) -> None:
    root = slake_folder()
    with pytest.raises(DataSetError, match=r"no choice 'lang'; choices are language"):
        prepared("slake", root, choices={"lang": "en"})
    with pytest.raises(DataSetError, match=r"language is 'fr', must be one of en, zh, all"):
        prepared("slake", root, choices={"language": "fr"})
    with pytest.raises(DataSetError, match=r"pathvqa has no choice 'a'; it has no choices"):
        prepared("pathvqa", root, choices={"a": "b"})


@pytest.mark.parametrize("split", ["val", "test"])
def test_official_splits_are_not_cut_again(
    slake_folder: Folder, prepared: Prepare, split: str
) -> None:
    with pytest.raises(DataSetError, match=rf"own splits; leave --{split}-fraction away"):
        prepared("slake", slake_folder(), **{f"{split}_fraction": 0.1})


# Counting.


def test_a_report_sets_found_beside_published(root: Path, tmp_path: Path) -> None:
    data_set = invented(
        [
            sample(1),
            sample(2, answer_type="OPEN", images=("b.png",)),
            sample(3, split="test"),
        ],
        published=(
            Published(
                name="official",
                source="its page",
                counts={
                    "train": Counts(records=3, open=1, closed=1, images=2),
                    "val": Counts(records=7),
                    "total": Counts(images=2),
                },
            ),
            Published(
                name="another form", source="", counts={}, layouts=("elsewhere",), choices={}
            ),
            Published(name="another choice", source="", counts={}, choices={"kind": "b"}),
            Published(name="this choice", source="", counts={}, choices={"kind": "a"}),
        ),
        choices=(Choice(name="kind", default="a", values=("a", "b"), help=""),),
    )
    report = prepare(data_set, root, tmp_path / "out", PrepareOptions()).report
    assert report["counts"] == {
        "train": {"records": 2, "open": 1, "closed": 1, "images": 2},
        "test": {"records": 1, "open": 0, "closed": 1, "images": 1},
        "total": {"records": 3, "open": 1, "closed": 2, "images": 2},
    }
    assert [each["name"] for each in report["published"]] == ["official", "this choice"]
    assert report["published"][0]["found_minus_published"] == {
        "train": {"records": -1, "open": 0, "closed": 0, "images": 0},
        "val": {"records": -7},
        "total": {"images": 0},
    }


def test_an_image_behind_a_link_that_leads_out_is_left_out(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.png").write_bytes(b"")
    (root / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "inside.png").symlink_to(root / "a.png")
    items = [sample(1, images=("inside.png",)), sample(2, images=("a.png", "link.png"))]
    report = prepare(invented(items), root, tmp_path / "out", PrepareOptions()).report
    assert report["left_out"]["unusable"] == {
        "its image leads out of the image folder through a link": {
            "count": 1,
            "images": 1,
            "first": ["list.txt item 2: link.png"],
        }
    }


def test_no_more_than_twenty_examples_are_listed(root: Path, tmp_path: Path) -> None:
    gone = [sample(number, images=(f"{number}.png",)) for number in range(2, 32)]
    report = prepare(invented([sample(1), *gone]), root, tmp_path / "out", PrepareOptions()).report
    listed = report["left_out"]["unusable"]["its image is not there"]
    assert listed["count"] == 30
    assert listed["first"] == [f"list.txt item {n}: {n}.png" for n in range(2, 22)]


def test_ids_of_the_set_that_repeat_are_numbered(root: Path, tmp_path: Path, lines: Lines) -> None:
    items = [sample(n, id=id_) for n, id_ in enumerate(("1", "1", "1_2", "1", "2"))]
    done = prepare(invented(items), root, tmp_path / "out", PrepareOptions())
    ids = [line["id"] for line in lines(done.out / "train.jsonl")]
    assert ids == ["invented_1", "invented_1_2", "invented_1_2_2", "invented_1_3", "invented_2"]
    assert done.report["ids"]["repeated"]["first"] == ids[1:4]


def test_a_set_of_which_nothing_can_be_used_is_an_error(root: Path, tmp_path: Path) -> None:
    items: list[Item] = [
        sample(1, images=("gone.png",)),
        LeftOut(where="list.txt item 2", reason="language zh", by_rule=True),
    ]
    with pytest.raises(DataSetError) as refused:
        prepare(invented(items), root, tmp_path / "out", PrepareOptions())
    assert str(refused.value).splitlines() == [
        f"{root}: no sample can be used",
        "  1 item: its image is not there (list.txt item 1: gone.png)",
        "  1 item: language zh",
    ]
    assert contents(tmp_path / "out") == {}


def test_nothing_that_a_sample_says_reaches_a_report(root: Path, tmp_path: Path) -> None:
    items = [
        sample(1, question="secret?", answer="secret"),
        sample(2, question="secret?", answer="secret"),
        sample(3, question="secret?", answer="other secret"),
        sample(4, question="secret", answer=" "),
        sample(5, question="secret \ud800", answer="secret"),
        sample(6, question="secret", answer="secret <image>"),
        sample(7, question="secret", options=("secret",)),
    ]
    done = prepare(invented(items), root, tmp_path / "out", PrepareOptions())
    assert done.report["counts"]["total"]["records"] == 3
    assert done.problems == 4
    assert "secret" not in (done.out / "report.json").read_text()


# Cutting.


def test_samples_without_a_split_are_cut_and_the_rule_is_written_down(
    root: Path, tmp_path: Path, lines: Lines
) -> None:
    # One image would tie all of them together, so each patient has an own one.
    for number in range(100):
        (root / f"{number}.png").write_bytes(b"")
    items = [
        sample(n, split=None, patient=f"p{n // 3}", images=(f"{n // 3}.png",)) for n in range(300)
    ]
    data_set = invented(items, fractions={"val": 0.1, "test": 0.2})
    done = prepare(data_set, root, tmp_path / "out", PrepareOptions(seed=5, val_fraction=0.3))
    assert done.report["splits"]["cut"] == {
        "seed": 5,
        "fractions": {"val": 0.3, "test": 0.2},
        "groups": 100,
        "of": "all",
        "rule": "by a hash of seed and group (patient, else study, else content of an image)",
    }
    patients = [
        {line["patient"] for line in lines(done.out / f"{split}.jsonl")}
        for split in ("train", "val", "test")
    ]
    assert sum(len(each) for each in patients) == 100
    assert len(set().union(*patients)) == 100
    with pytest.raises(DataSetError, match="leave nothing to train on"):
        prepare(data_set, root, tmp_path / "out2", PrepareOptions(val_fraction=0.9))


def test_published_train_is_compared_with_what_val_was_cut_out_of(
    root: Path, tmp_path: Path
) -> None:
    for number in range(40):
        (root / f"{number}.png").write_text(str(number))
    data_set = invented(
        [sample(n, images=(f"{n // 2}.png",)) for n in range(80)],
        published=(
            Published(name="one", source="", counts={"train": Counts(records=80, images=40)}),
        ),
    )
    report = prepare(data_set, root, tmp_path / "out", PrepareOptions(val_fraction=0.5)).report
    assert 0 < report["counts"]["train"]["records"] < 80
    assert report["published"][0]["found_minus_published"] == {"train": {"records": 0, "images": 0}}
    assert report["splits"]["cut"]["of"] == "train"


# Records.


def test_several_images_options_and_a_report_stand_where_training_and_scoring_look(
    root: Path, tmp_path: Path, lines: Lines
) -> None:
    items = [
        sample(1, images=("a.png", "b.png"), options=("CT", "MR"), answer="MR", question="Which?"),
        sample(2, answer="Heart normal.", report="Heart normal.", answer_type=None, study="s1"),
        sample(3, licence="MIT", extra={"organ": "heart", "split": "other"}),
    ]
    done = prepare(invented(items), root, tmp_path / "out", PrepareOptions())
    choice, report, other = lines(done.out / "train.jsonl")
    assert choice["image"] == ["a.png", "b.png"]
    assert choice["conversations"][0]["value"] == (
        "<image>\n<image>\nWhich? Please choose from the following options: CT, MR"
    )
    assert (choice["options"], choice["answer"]) == (["CT", "MR"], "MR")
    assert report["report"] == "Heart normal."
    assert "answer_type" not in report
    assert (report["study"], report["licence"]) == ("s1", "CC0-1.0")
    assert done.report["licence"]["records"] == {"CC0-1.0": 2, "MIT": 1}
    assert (other["licence"], other["organ"], other["split"]) == ("MIT", "heart", "train")
