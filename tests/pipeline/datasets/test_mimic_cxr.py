"""MIMIC-CXR: both layouts, sampling, and that no text gets out. Every text here is invented."""

import gzip
import json
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from medalign.cli import app
from medalign.pipeline.datasets.definition import DataSetError
from medalign.pipeline.datasets.prepare import Prepared

CANARY = "XXCANARYXX"
REPORT = f"FINAL REPORT\n FINDINGS: {CANARY} invented lungs.\n IMPRESSION: {CANARY} none.\n"
Lines = Callable[[Path], list[dict[str, Any]]]
Prepare = Callable[..., Prepared]
Tree = Callable[..., Path]


def row(patient: object, study: int, dicom: str, split: str = "train", view: str = "PA") -> Any:
    return patient, study, dicom, split, view


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Make PhysioNet's folders: `tree(rows, texts={study: text or None}, version="2.1.0")`."""

    def make(
        *rows: Any, texts: dict[int, Any] | None = None, version: str = "2.1.0", packed: bool = True
    ) -> Path:
        root = tmp_path / "physionet.org" / "files"
        tables = {
            "split": "dicom_id,study_id,subject_id,split\n",
            "metadata": "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,"
            "ViewPosition,Rows\n",
        }
        jpg = root / "mimic-cxr-jpg" / version
        for patient, study, dicom, split, view in rows:
            tables["split"] += f"{dicom},{study},{patient},{split}\n"
            tables["metadata"] += f'{dicom},{patient},{study},"CHEST (PA, LAT)",{view},3056\n'
            folder = f"p{str(patient)[:2]}/p{patient}"
            image = jpg / "files" / folder / f"s{study}" / f"{dicom}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(b"made up")
            text = (texts or {}).get(study, f"{REPORT} {study}")
            if text is not None:
                path = root / "mimic-cxr" / "2.0.0" / "files" / folder / f"s{study}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text if isinstance(text, bytes) else text.encode())
        for name, text in tables.items():
            path = jpg / f"mimic-cxr-2.0.0-{name}.csv"
            if packed:
                path = path.with_suffix(".csv.gz")
                path.write_bytes(gzip.compress(text.encode()))
            else:
                path.write_text(text)
        return root

    return make


@pytest.fixture
def annotated(tmp_path: Path) -> Callable[..., Path]:
    """Make R2Gen's folder of MIMIC-CXR."""

    def make(*items: dict[str, Any]) -> Path:
        root = tmp_path / "mimic_cxr"
        found: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
        for item in items:
            found[item["split"]].append(item)
            for path in item["image_path"]:
                (root / "images" / path).parent.mkdir(parents=True, exist_ok=True)
                (root / "images" / path).write_bytes(b"made up")
        root.mkdir(exist_ok=True)
        (root / "annotation.json").write_text(json.dumps(found))
        return root

    return make


def item(dicom: str, patient: int = 10000000, split: str = "train", **changes: Any) -> Any:
    """One item of R2Gen's annotation."""
    return {
        "id": dicom,
        "study_id": 50000000,
        "subject_id": patient,
        "report": f"{CANARY} made-up\n lungs.",
        "image_path": [f"p10/p{patient}/s50000000/{dicom}.jpg"],
        "split": split,
    } | changes


def ids(path: Path, lines: Lines) -> list[str]:
    return [record["id"].removeprefix("mimic-cxr-report_") for record in lines(path)]


@pytest.mark.parametrize(("version", "packed"), [("2.1.0", True), ("2.0.0", False)])
def test_physionet_gives_the_findings_of_frontal_views(
    tree: Tree, prepared: Prepare, lines: Lines, version: str, packed: bool
) -> None:
    root = tree(
        row(10000032, 50414267, "aaaa-bbbb"),
        row(10000032, 50414267, "aaaa-cccc", view="LATERAL"),
        row(10000032, 50414267, "aaaa-dddd", view="AP"),
        row(10000040, 50414270, "bbbb", view=""),
        row(11000050, 50414280, "cccc", split="validate", view="AP"),
        row(12000060, 50414290, "dddd", split="test"),
        texts={50414290: f"IMPRESSION: {CANARY} only."},
        version=version,
        packed=packed,
    )
    done = prepared("mimic-cxr-report", root)
    train = lines(done.out / "train.jsonl")
    assert [record["image"] for record in train] == [
        "p10/p10000032/s50414267/aaaa-bbbb.jpg",
        "p10/p10000032/s50414267/aaaa-dddd.jpg",
    ]
    assert train[0]["report"] == train[0]["conversations"][1]["value"]
    assert train[0]["report"] == f"{CANARY} invented lungs."
    assert (train[0]["patient"], train[0]["study"]) == ("10000032", "50414267")
    assert train[0]["section"] == "findings"
    (test,) = lines(done.out / "test.jsonl")
    assert (test["report"], test["section"]) == (f"{CANARY} only.", "impression")
    assert ids(done.out / "val.jsonl", lines) == ["cccc"]
    assert done.report["left_out"]["by_rule"] == {"its view is not AP or PA": 2}
    assert done.report["images"] == str(root / "mimic-cxr-jpg" / version / "files")
    every = prepared("mimic-cxr-report", root, choices={"views": "all"}, overwrite=True)
    assert ids(every.out / "train.jsonl", lines) == ["aaaa-bbbb", "aaaa-cccc", "aaaa-dddd", "bbbb"]


def test_texts_may_lie_elsewhere_and_the_tables_alone(
    tree: Tree, prepared: Prepare, lines: Lines, tmp_path: Path
) -> None:
    root = tree(row(10000032, 50414267, "aaaa"))
    alone = root / "mimic-cxr-jpg" / "2.1.0"
    assert ids(prepared("mimic-cxr-report", alone).out / "train.jsonl", lines) == ["aaaa"]
    elsewhere = tmp_path / "reports"
    (root / "mimic-cxr" / "2.0.0" / "files").rename(elsewhere)
    with pytest.raises(DataSetError, match="pass --choose texts=DIR"):
        prepared("mimic-cxr-report", alone, overwrite=True)
    with pytest.raises(DataSetError, match="no such folder"):
        prepared("mimic-cxr-report", alone, choices={"texts": "/nowhere"}, overwrite=True)
    done = prepared("mimic-cxr-report", root, choices={"texts": str(elsewhere)}, overwrite=True)
    assert ids(done.out / "train.jsonl", lines) == ["aaaa"]


def test_reports_that_cannot_be_used_are_counted_by_reason(tree: Tree, prepared: Prepare) -> None:
    root = tree(
        row(10000001, 50000001, "a"),
        row(10000002, 50000002, "b"),
        row(10000003, 50000003, "c"),
        row(10000004, 50000004, "d"),
        row(10000005, 50000005, "e", split="nowhere"),
        texts={
            50000002: None,
            50000003: f"FINDINGS: {CANARY} \xff".encode("latin-1"),
            50000004: f"FINAL REPORT\n {CANARY} a report without headings",
        },
    )
    done = prepared("mimic-cxr-report", root)
    left_out = done.report["left_out"]
    assert left_out["by_rule"] == {"its report has neither findings nor an impression": 1}
    assert {why: listed["first"] for why, listed in left_out["unusable"].items()} == {
        "its report is not there": ["p10/p10000002/s50000002.txt"],
        "its report is not UTF-8": ["p10/p10000003/s50000003.txt"],
        "its row in the split table is not as it should be": [
            "mimic-cxr-2.0.0-split.csv.gz line 6"
        ],
    }


def test_a_sample_takes_patients_in_an_order_of_their_own(
    tree: Tree, prepared: Prepare, lines: Lines
) -> None:
    rows = [
        row(10000000 + patient, 50000000 + 10 * patient + k, f"{patient}-{k}")
        for patient in range(12)
        for k in range(2)
    ]
    root = tree(*rows, row(19000000, 59000000, "test", split="test"))

    def taken(size: str, seed: str = "0") -> list[str]:
        choices = {"sample": size, "sample_seed": seed}
        done = prepared("mimic-cxr-report", root, choices=choices, overwrite=True)
        assert ids(done.out / "test.jsonl", lines) == ["test"]
        return ids(done.out / "train.jsonl", lines)

    five = taken("5")
    assert len(five) == 5
    assert len({name.split("-")[0] for name in five}) == 3
    assert taken("9")[:5] == five
    assert taken("5", seed="1") != five
    assert len(taken("999")) == 24
    for wrong in ("0", "-3", "many", "²"):
        with pytest.raises(DataSetError, match="must be a number from 1, or all"):
            taken(wrong)


def test_a_sample_is_of_records_that_can_be_used(
    tree: Tree, prepared: Prepare, lines: Lines
) -> None:
    rows = [
        row(10000000 + patient, 50000000 + 10 * patient + k, f"{patient}-{k}")
        for patient in range(6)
        for k in range(3)
    ]
    root = tree(*rows)
    for path in root.rglob("*-0.jpg"):
        path.unlink()
    done = prepared("mimic-cxr-report", root, choices={"sample": "5"})
    assert len(lines(done.out / "train.jsonl")) == 5
    missing = done.report["left_out"]["unusable"]["its image is not there"]["count"]
    rest = done.report["left_out"]["by_rule"]["record of train not in the sample"]
    assert missing == 3  # three patients were looked at
    assert 5 + missing + rest == len(rows)


def test_a_sample_of_r2gen_counts_every_record(
    annotated: Callable[..., Path], prepared: Prepare, lines: Lines
) -> None:
    root = annotated(*(item(f"{p}-{k}", 10000000 + p) for p in range(3) for k in range(4)))
    done = prepared("mimic-cxr-report", root, choices={"sample": "5"})
    assert len(lines(done.out / "train.jsonl")) == 5
    assert done.report["left_out"]["by_rule"] == {"record of train not in the sample": 7}


def test_a_text_behind_a_link_that_leads_out_is_not_read(
    tree: Tree, prepared: Prepare, tmp_path: Path
) -> None:
    root = tree(row(10000001, 50000001, "a"), row(10000002, 50000002, "b"))
    text = next(root.rglob("s50000002.txt"))
    text.unlink()
    (tmp_path / "secret").write_text(f"FINDINGS: {CANARY}")
    text.symlink_to(tmp_path / "secret")
    unusable = prepared("mimic-cxr-report", root).report["left_out"]["unusable"]
    assert list(unusable) == ["its report leads out of their folder through a link"]


def test_a_text_that_may_not_be_read_is_not_called_missing(tree: Tree, prepared: Prepare) -> None:
    root = tree(row(10000001, 50000001, "a"), row(10000002, 50000002, "b"))
    text = next(root.rglob("s50000002.txt"))
    text.unlink()
    text.mkdir()  # root may read anything else
    unusable = prepared("mimic-cxr-report", root).report["left_out"]["unusable"]
    assert list(unusable) == ["its report cannot be read: is a directory"]


def test_a_table_with_a_mark_at_its_beginning_is_read(
    tree: Tree, prepared: Prepare, lines: Lines
) -> None:
    root = tree(row(10000001, 50000001, "a"), packed=False)
    for path in root.rglob("*.csv"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert ids(prepared("mimic-cxr-report", root).out / "train.jsonl", lines) == ["a"]


def test_numbers_are_plain_digits(tree: Tree, prepared: Prepare) -> None:
    root = tree(
        row(10000001, 50000001, "a"),
        row("\uff11\uff10\uff10\uff10", 50000002, "b"),
        row(10000003, 50000003, "../c"),
    )
    unusable = prepared("mimic-cxr-report", root).report["left_out"]["unusable"]
    assert unusable["its row in the split table is not as it should be"]["count"] == 2


def test_texts_of_patients_that_are_not_taken_are_not_opened(tree: Tree, prepared: Prepare) -> None:
    rows = [row(10000000 + k, 50000000 + k, f"d{k}") for k in range(9)]
    root = tree(*rows)
    prepared("mimic-cxr-report", root, choices={"sample": "1"})
    texts = list((root / "mimic-cxr").rglob("*.txt"))
    taken = prepared("mimic-cxr-report", root, choices={"sample": "1"}).report
    assert taken["left_out"]["by_rule"] == {"record of train not in the sample": 8}
    (image,) = json.loads((next((root.parents[1] / "out").glob("train.jsonl"))).read_text())[
        "image"
    ].split()
    for path in texts:
        if path.stem != image.split("/")[2]:
            path.unlink()
    again = prepared("mimic-cxr-report", root, choices={"sample": "1"})
    assert (again.state, again.problems) == ("unchanged", 0)


def test_r2gen_keeps_its_splits_and_joins_lines(
    annotated: Callable[..., Path], prepared: Prepare, lines: Lines
) -> None:
    root = annotated(item("a"), item("b", 10000001), item("c", split="val"), item("d", report=" "))
    done = prepared("mimic-cxr-report", root)
    train = lines(done.out / "train.jsonl")
    assert [record["id"] for record in train] == ["mimic-cxr-report_a", "mimic-cxr-report_b"]
    assert train[0]["report"] == f"{CANARY} made-up lungs."
    assert (train[1]["patient"], train[1]["study"]) == ("10000001", "50000000")
    assert ids(done.out / "val.jsonl", lines) == ["c"]
    assert list(done.report["left_out"]["unusable"]) == ["its report is blank"]
    some = prepared("mimic-cxr-report", root, choices={"sample": "1"}, overwrite=True)
    assert len(lines(some.out / "train.jsonl")) == 1


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, words)])


def told(done: Result) -> str:
    """All that a user may see, with --debug too."""
    if done.exc_info is None:
        return done.output
    return done.output + "".join(traceback.format_exception(*done.exc_info))


def check_silence(out: Path, *done: Result) -> None:
    for each in done:
        assert CANARY not in told(each)
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".jsonl":
            assert CANARY not in path.read_text()


def test_no_text_leaves_the_manifests(tree: Tree, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    same = f"FINAL REPORT\n FINDINGS: {CANARY} again <image>"
    root = tree(
        row(10000001, 50000001, "a"),
        row(10000001, 50000001, "b"),
        row(10000002, 50000002, "c", split="test"),
        row(10000003, 50000003, "d"),
        row(10000004, 50000004, "e"),
        row(10000004, 50000005, "f"),
        texts={50000003: same, 50000004: f"{CANARY} nothing", 50000005: CANARY.encode() + b"\xff"},
    )
    prepare = ("prepare", "mimic-cxr-report", root, "--out", out)
    first = run(*prepare)
    assert first.exit_code == 1
    assert CANARY in (out / "train.jsonl").read_text()
    again = run(*prepare)
    images = root / "mimic-cxr-jpg" / "2.1.0" / "files"
    check = run("check", out / "train.jsonl", "--images", images)
    assert check.exit_code == 1  # the images are made up
    train, test = out / "train.jsonl", out / "test.jsonl"
    leaks = run("leakage", train, test, "--images", images, "--json", out / "leaks.json")
    assert leaks.exit_code == 1  # one made-up image is all of them
    check_silence(out, first, again, check, leaks)


@pytest.mark.parametrize(
    "broken",
    [
        {"report": [CANARY]},
        {"report": {"text": CANARY}},
        {"report": f"{CANARY} \ud800"},
        {"report": f"{CANARY} <image>"},
        {"report": "", "text": CANARY},
        {"id": [CANARY]},
        {"image_path": []},
        {"image_path": [CANARY]},
        {"image_path": [f"{CANARY} /.. lungs"]},
        {"image_path": ["C:/" + CANARY]},
        {"id": CANARY + " ."},
        {"subject_id": CANARY},
        {"study_id": CANARY},
        {"subject_id": f"{CANARY} \ud800"},
        {"study_id": None},
    ],
)
def test_no_text_gets_out_of_broken_items(
    annotated: Callable[..., Path], tmp_path: Path, broken: dict[str, Any]
) -> None:
    out = tmp_path / "prepared"
    root = annotated(item("a") | broken, item("a") | broken, item("b", report="Invented."))
    for image in list(root.rglob(f"*{CANARY}*")):
        shutil.rmtree(image) if image.is_dir() else image.unlink()
    for sample in ("all", "1"):
        words = ("--choose", f"sample={sample}", "--overwrite")
        done = run("prepare", "mimic-cxr-report", root, "--out", out, *words)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        check_silence(out, done)


@pytest.mark.parametrize(
    "content",
    [
        f'{{"train": [{{"report": "{CANARY}" "subject_id": 1}}]}}',
        f'{{"train": [{{"report": "{CANARY}\n"}}]}}',
        f'{{"train": [{{"report": "{CANARY}"}}]}}',
        f'{{"train": ["{CANARY}"]}}',
        f'{{"train": "{CANARY}"}}',
        f'{{"train": 5, "val": [{{"report": "{CANARY}", "subject_id": 1}}]}}',
        f'{{"train": null, "val": [{{"report": "{CANARY}", "subject_id": 1}}]}}',
        f'["{CANARY}"]',
        f'"{CANARY}',
        f'{{"train": [{{"report": "{CANARY}", "subject_id": 1}}]}}',
    ],
)
def test_no_text_gets_out_of_a_broken_annotation(tmp_path: Path, content: str) -> None:
    root, out = tmp_path / "mimic_cxr", tmp_path / "prepared"
    (root / "images").mkdir(parents=True)
    (root / "annotation.json").write_text(content)
    done = run("prepare", "mimic-cxr-report", root, "--out", out)
    assert isinstance(done.exception, DataSetError)
    check_silence(out, done)


@pytest.mark.parametrize("what", ["column", "cut", "flipped", "twice"])
def test_tables_that_are_not_physionets_are_refused(
    tree: Tree, prepared: Prepare, what: str
) -> None:
    root = tree(row(10000032, 50414267, "aaaa"))
    path = root / "mimic-cxr-jpg" / "2.1.0" / "mimic-cxr-2.0.0-metadata.csv.gz"
    if what == "column":
        path.write_bytes(gzip.compress(b"dicom_id,Rows\naaaa,1\n"))
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif what == "flipped":
        data = path.read_bytes()
        path.write_bytes(data[:12] + b"\xff" * 20 + data[32:])
    else:
        path.with_suffix("").write_text("dicom_id,ViewPosition\n")
    messages = {
        "column": "lacks the column ViewPosition",
        "cut": "cut short",
        "flipped": "damaged",
        "twice": "found 2",
    }
    with pytest.raises(DataSetError, match=messages[what]):
        prepared("mimic-cxr-report", root)
