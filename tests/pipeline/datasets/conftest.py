"""Small folders in exactly the forms in which the data sets are handed out."""

import json
import pickle  # noqa: TID251 - makes what the restricted reader must read
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.datasets.prepare import Prepared, PrepareOptions, prepare
from medalign.pipeline.datasets.registry import DATA_SETS

_JPEG = b"\xff\xd8\xff\xe0made up"
_PNG = b"\x89PNG\r\n\x1a\nmade up"


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _slake_item(qid: int, image: int, **changes: Any) -> dict[str, Any]:
    """One question with exactly the fields of the release."""
    item = {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": f"Which organ is abnormal, number {qid}?",
        "answer": "Liver",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "CT",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Abnormality",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
    }
    return item | changes


@pytest.fixture
def slake_folder(tmp_path: Path) -> Callable[..., Path]:
    """`slake_folder({"train.json": [...], ...})`: the set's folder; image 2 has no mask."""

    def make(files: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> Path:
        files = files or {
            "train.json": [_slake_item(1, 1), _slake_item(2, 2)],
            "validate.json": [_slake_item(3, 3)],
            "test.json": [_slake_item(4, 4)],
        }
        root = tmp_path / "download" / "Slake1.0"
        for name, items in files.items():
            _write_json(root / name, items)
            for item in items:
                image = root / "imgs" / item["img_name"]
                if image.exists():
                    continue
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(_JPEG + item["img_name"].encode())
                if item["img_id"] != 2:
                    (image.parent / "mask.png").write_bytes(_PNG)
        return root

    return make


def _rad_item(qid: int | str, image: str = "synpic1.jpg", **changes: Any) -> dict[str, Any]:
    """One question with exactly the fields of the OSF release."""
    item = {
        "qid": qid,
        "phrase_type": "freeform",
        "qid_linked_id": "03f451ca-de62-4617-9679-e836026a7642",
        "image_case_url": "https://medpix.example/case?id=1",
        "image_name": image,
        "image_organ": "HEAD",
        "evaluation": "not evaluated",
        "question": f"Are regions of the brain infarcted, {qid}?",
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": "Yes",
        "answer_type": "CLOSED",
    }
    return item | changes


_REPACKED = (
    "qid",
    "image_name",
    "image_organ",
    "answer",
    "answer_type",
    "question_type",
    "question",
    "phrase_type",
)
"""The fields of the MICCAI repack."""


@pytest.fixture
def rad_osf(tmp_path: Path) -> Callable[[Sequence[Mapping[str, Any]]], Path]:
    """Make the OSF release of VQA-RAD of some questions."""

    def make(items: Sequence[Mapping[str, Any]]) -> Path:
        root = tmp_path / "osf"
        _write_json(root / "VQA_RAD Dataset Public.json", items)
        _images(root / "VQA_RAD Image Folder", {item["image_name"] for item in items})
        return root

    return make


@pytest.fixture
def rad_repack(tmp_path: Path) -> Callable[..., Path]:
    """Make the MICCAI repack of VQA-RAD: `rad_repack(train, test)`."""

    def make(train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]) -> Path:
        root = tmp_path / "data_RAD"
        for name, items in (("trainset.json", train), ("testset.json", test)):
            _write_json(root / name, [{key: item[key] for key in _REPACKED} for item in items])
        _images(root / "images", {item["image_name"] for item in (*train, *test)})
        return root

    return make


@pytest.fixture
def pathvqa_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make the official release of PathVQA: `pathvqa_folder({"train": [...]}, protocol=2)`."""

    def make(splits: Mapping[str, object], protocol: int = 3) -> Path:
        root = tmp_path / "pvqa"
        for split in ("train", "val", "test"):
            items = splits.get(split, [_path_item(f"{split}_0000")])
            folder = root / "qas" / split
            folder.mkdir(parents=True)
            (folder / f"{split}_qa.pkl").write_bytes(pickle.dumps(items, protocol))
            # Other pickles lie beside them; nobody reads these.
            (root / "qas" / f"{split}_vqa.pkl").write_bytes(b"cos\nsystem\n.")
            names = {
                f"{item['image']}.jpg"
                for item in (items if isinstance(items, list) else [])
                if isinstance(item, dict) and isinstance(item.get("image"), str)
            }
            _images(root / "images" / split, names)
        return root

    return make


def _path_item(image: str, question: str = "is it intact?", answer: Any = "no") -> dict[str, Any]:
    """One question as PathVQA's pickles have it."""
    return {"image": image, "question": question, "answer": answer}


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a download from Hugging Face: `parquet_folder({"train-00000-of-00001-ab": rows})`.

    A row is (bytes of the image or None, its path or None, question, answer).
    """

    def make(shards: Mapping[str, Sequence[tuple[Any, Any, Any, Any]]], name: str = "hub") -> Path:
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        (tmp_path / name / "data").mkdir(parents=True, exist_ok=True)
        for shard, rows in shards.items():
            images = [{"bytes": row[0], "path": row[1]} for row in rows]
            table = arrow.table(
                {
                    "image": arrow.array(images, kind),
                    "question": arrow.array([row[2] for row in rows], arrow.string()),
                    "answer": arrow.array([row[3] for row in rows], arrow.string()),
                }
            )
            parquet.write_table(
                table, tmp_path / name / "data" / f"{shard}.parquet", row_group_size=2
            )
        return tmp_path / name

    return make


def _images(folder: Path, names: set[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(_JPEG + name.encode())


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Prepared]:
    """`prepared("slake", folder, seed=1, ...)`: prepare into tmp_path / "out"."""

    def run(name: str, folder: Path, **asked: Any) -> Prepared:
        return prepare(DATA_SETS[name], folder, tmp_path / "out", PrepareOptions(**asked))

    return run


def _lines(path: Path) -> list[dict[str, Any]]:
    """The records of a manifest as they stand in the file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def slake_item() -> Callable[..., dict[str, Any]]:
    """`slake_item(qid, image, **changes)`: one question of SLAKE."""
    return _slake_item


@pytest.fixture(scope="session")
def rad_item() -> Callable[..., dict[str, Any]]:
    """`rad_item(qid, image_name, **changes)`: one question of VQA-RAD's OSF release."""
    return _rad_item


@pytest.fixture(scope="session")
def path_item() -> Callable[..., dict[str, Any]]:
    """`path_item(image, question, answer)`: one question of PathVQA's pickles."""
    return _path_item


@pytest.fixture(scope="session")
def lines() -> Callable[[Path], list[dict[str, Any]]]:
    """`lines(path)`: the records of a manifest as they stand in the file."""
    return _lines
