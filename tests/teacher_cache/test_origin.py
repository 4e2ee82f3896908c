import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from medalign.teacher_cache.origin import Origin, load_origin, save_origin
from medalign.teacher_cache.schema import TeacherCacheError

ORIGIN = Origin(
    command=("medalign", "cache", "build", "/data/m é.jsonl", "--images", "/data/a b"),
    manifest="/data/m é.jsonl",
    images="/data/a b",
    expert="unimed-l",
    weights="/models/w.pt",
)


def test_an_origin_reads_back_and_the_last_one_counts(tmp_path: Path) -> None:
    save_origin(tmp_path / "store", ORIGIN)
    assert load_origin(tmp_path / "store") == ORIGIN
    later = Origin(**{**asdict(ORIGIN), "weights": None})
    save_origin(tmp_path / "store", later)
    assert load_origin(tmp_path / "store") == later


def test_fields_of_later_versions_are_left_alone(tmp_path: Path) -> None:
    save_origin(tmp_path, ORIGIN)
    file = tmp_path / "_commit" / "origin.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "more": 1}))
    assert load_origin(tmp_path) == ORIGIN


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ["rm", "-rf", "/"]},
        {"command": ["medalign", "cache", "build", "a\x1b[2J"]},
        {"command": ["medalign", "cache", "build", "a\nrm -rf /"]},
        {"command": "medalign cache build"},
        {"command": ["medalign", "cache", "build", 3]},
        {"command": None},
        {"manifest": 3},
        {"images": ""},
        {"expert": None},
        {"weights": ["a"]},
    ],
)
def test_what_nobody_should_type_again_is_no_origin(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    save_origin(tmp_path, ORIGIN)
    file = tmp_path / "_commit" / "origin.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert load_origin(tmp_path) is None
    with pytest.raises(TeacherCacheError):
        Origin.from_json({**asdict(ORIGIN), "command": list(ORIGIN.command), **changes})


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"{" * 10_000, b" " * 2**21])
def test_an_unreadable_origin_is_none_and_never_an_error(tmp_path: Path, content: bytes) -> None:
    assert load_origin(tmp_path / "nowhere") is None
    (tmp_path / "_commit").mkdir()
    assert load_origin(tmp_path) is None
    (tmp_path / "_commit" / "origin.json").write_bytes(content)
    assert load_origin(tmp_path) is None


def test_any_folder_that_a_terminal_can_show_is_fine(tmp_path: Path) -> None:
    images = "/data/\u80f8\u90e8\u3000\u753b\u50cf/a\u00a0b"  # ideographic and no-break spaces
    origin = Origin(**{**asdict(ORIGIN), "images": images})
    save_origin(tmp_path, origin)
    assert load_origin(tmp_path) == origin
