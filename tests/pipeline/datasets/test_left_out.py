"""One item that is not as it should be is left out, and the rest of the set is prepared."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medalign.pipeline.commands.prepare_data import show
from medalign.pipeline.datasets.definition import DataSetError
from medalign.pipeline.datasets.prepare import Prepared, PrepareOptions, prepare
from medalign.pipeline.datasets.registry import DATA_SETS

Folder = Callable[..., Path]
Item = Callable[..., dict[str, Any]]
Prepare = Callable[..., Prepared]


def left_out(done: Prepared) -> dict[str, list[str]]:
    unusable = done.report["left_out"]["unusable"]
    return {reason: listed["first"] for reason, listed in unusable.items()}


def change(root: Path, old: str, new: str) -> None:
    """Write what `json.dumps` would refuse, or write in another way."""
    path = root / "train.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
def test_a_number_that_json_does_not_know(
    slake_folder: Folder, slake_item: Item, prepared: Prepare, number: str
) -> None:
    train = [slake_item(1, 1, triple="HERE"), slake_item(2, 2)]
    root = slake_folder({"train.json": train, "validate.json": [], "test.json": []})
    change(root, '"HERE"', number)
    done = prepared("slake", root)
    reason = "a field holds NaN or an infinity, which JSON does not know"
    assert left_out(done) == {reason: ["train.json item 1"]}
    assert done.report["counts"]["train"]["records"] == 1


def test_an_answer_that_is_no_number_is_blank(
    slake_folder: Folder, slake_item: Item, prepared: Prepare
) -> None:
    train = [slake_item(1, 1, answer="HERE"), slake_item(2, 2)]
    root = slake_folder({"train.json": train, "validate.json": [], "test.json": []})
    change(root, '"HERE"', "NaN")
    assert left_out(prepared("slake", root)) == {"the answer is blank": ["train.json item 1"]}


def test_a_number_of_thousands_of_digits_is_an_error_that_names_the_file(
    slake_folder: Folder, prepared: Prepare
) -> None:
    root = slake_folder()
    change(root, '"img_id": 1', '"img_id": ' + "9" * 5000)
    with pytest.raises(DataSetError, match=r"train.json: holds a number of thousands of digits"):
        prepared("slake", root)


@pytest.mark.parametrize("field", ["location", "modality", "qid", "answer"])
def test_half_a_character(
    slake_folder: Folder, slake_item: Item, prepared: Prepare, field: str
) -> None:
    train = [slake_item(1, 1) | {field: "HERE"}, slake_item(2, 2)]
    root = slake_folder({"train.json": train, "validate.json": [], "test.json": []})
    change(root, "HERE", r"\ud800")
    assert left_out(prepared("slake", root)) == {
        "a field holds half a character (a lone surrogate)": ["train.json item 1"]
    }


def test_names_of_files_that_are_no_text_do_not_stop_a_report(
    slake_folder: Folder, prepared: Prepare
) -> None:
    root = slake_folder()
    odd = root.with_name("odd\udcff")
    try:
        root.rename(odd)
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system wants UTF-8")
    done = prepared("slake", odd)
    assert json.loads((done.out / "report.json").read_bytes())["folder"] == str(odd)
    second = prepared("slake", odd)
    assert second.state == "unchanged"
    with (odd.parent / "screen").open("w", encoding="utf-8") as screen:
        show(second, Console(file=screen, width=500))
    assert r"odd\udcff" in (odd.parent / "screen").read_text(encoding="utf-8")


def test_a_path_that_is_too_long(slake_folder: Folder, slake_item: Item, prepared: Prepare) -> None:
    root = slake_folder()
    train = [slake_item(1, 1), slake_item(2, 2, img_name=f"{'x' * 300}/source.jpg")]
    (root / "train.json").write_text(json.dumps(train))
    ((reason, (first,)),) = left_out(prepared("slake", root)).items()
    assert reason == "its image cannot be looked at: file name too long"
    assert first.startswith("train.json item 2: xxxx")
    assert len(first) < 200


def test_paths_that_lead_nowhere_are_one_reason(
    slake_folder: Folder, slake_item: Item, prepared: Prepare
) -> None:
    root = slake_folder()
    names = [r"xmlab1\source.jpg", "C:/source.jpg", "/etc/passwd", "../source.jpg", "http://a/b"]
    train = [slake_item(k, k, img_name=name) for k, name in enumerate(names)]
    (root / "train.json").write_text(json.dumps([slake_item(9, 1), *train]))
    done = prepared("slake", root)
    reason = "its image path must be relative, with / between folders and no `..`"
    assert left_out(done) == {
        reason: [f"train.json item {number}: {name}" for number, name in enumerate(names, 2)]
    }
    assert done.report["left_out"]["unusable"][reason]["images"] == 5


def test_images_that_are_missing_are_counted_too(
    slake_folder: Folder, slake_item: Item, prepared: Prepare
) -> None:
    train = [slake_item(number, number % 3) for number in range(9)]
    root = slake_folder({"train.json": train, "validate.json": [], "test.json": []})
    for number in (1, 2):
        (root / "imgs" / f"xmlab{number}" / "source.jpg").unlink()
    missing = prepared("slake", root).report["left_out"]["unusable"]["its image is not there"]
    assert (missing["count"], missing["images"]) == (6, 2)


def test_a_mask_that_leads_out(slake_folder: Folder, prepared: Prepare, tmp_path: Path) -> None:
    root = slake_folder()
    mask = root / "imgs" / "xmlab1" / "mask.png"
    mask.rename(tmp_path / "mask.png")
    mask.symlink_to(tmp_path / "mask.png")
    assert left_out(prepared("slake", root)) == {
        "its mask leads out of the image folder through a link": [
            "train.json item 1: xmlab1/mask.png"
        ]
    }


class Told:
    """Remembers stages and how far they went."""

    def __init__(self) -> None:
        self.stages = dict[str, list[int]]()

    @contextmanager
    def stage(self, what: str, *, total: int, done: int = 0) -> Iterator[None]:
        self.stages[what] = [done, total]
        self._now = self.stages[what]
        yield

    def advance(self, count: int) -> None:
        self._now[0] += count

    def say(self, message: str) -> None:
        raise AssertionError(message)


def test_looking_for_images_and_reading_them_is_told(
    rad_osf: Folder, rad_item: Item, tmp_path: Path
) -> None:
    items = [rad_item(k, f"synpic{k % 3}.jpg", image_case_url="") for k in range(9)]
    told = Told()
    asked = PrepareOptions(val_fraction=0.5)
    prepare(DATA_SETS["vqa-rad"], rad_osf(items), tmp_path / "out", asked, told)
    assert told.stages == {
        "looking for images": [3, 3],
        "reading images to tell equal ones": [3, 3],
    }
