"""Which files of a manifest are there: one bad path never stops the others."""

import errno
import os
from pathlib import Path

import pytest

from medalign.pipeline.manifest import Absent, find_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png", "sub/b.png"):
        (root / name).touch()
    (root / "out").symlink_to(tmp_path)
    (root / "near.png").symlink_to("sub/b.png")
    (root / "far.png").symlink_to(tmp_path / "far.png")
    (root / "loop").symlink_to("loop")
    return root


def test_each_path_that_leads_nowhere_has_its_own_reason(root: Path) -> None:
    there = ["a.png", "sub/b.png", "./a.png", "sub/./a.png", "near.png"]
    long, control = "x" * 300, "\x1b[31m.png"
    lost = ["none.png", "sub", "a.png/b.png", "none/a.png", long, control, "loop"]
    outside = ["out/far.png", "far.png", "/etc/hosts", "../a.png"]
    found, absent = find_images(root, [*lost, *there, *outside])
    assert found == there
    assert list(absent) == [*lost, *outside]
    assert {path: why.outside for path, why in absent.items()} == {
        path: path in outside for path in absent
    }
    assert [str(absent[path]) for path in lost[:4]] == lost[:4]
    assert str(absent[long]) == f"{'x' * 120}...: file name too long"
    assert str(absent[control]) == r"\x1b[31m.png"
    assert absent["loop"] == Absent("loop", "too many levels of symbolic links")
    assert "leads out of" in str(absent["out/far.png"])
    assert "is absolute" in str(absent["/etc/hosts"])


def test_a_folder_that_may_not_be_entered_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    _, absent = find_images(root, ["sub/a.png"])
    assert str(absent["sub/a.png"]) == "sub/a.png: permission denied"


def test_the_folder_itself_is_looked_up_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    real = os.path.realpath

    def look_up(path: str) -> str:
        looked.append(path)
        return real(path)

    monkeypatch.setattr(os.path, "realpath", look_up)
    paths = [f"{folder}/{k}.png" for folder in ("sub", "none") for k in range(100)]
    told: list[int] = []
    find_images(root, paths, told.append)
    assert len(looked) == 3
    assert sum(told) == 200
