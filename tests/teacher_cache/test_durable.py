import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medalign.runtime.files import (
    make_folder,
    publish_once,
    sweep_partial,
    write_durably,
)

Write = Callable[[Path, bytes], object]


def test_writing_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_publishing_happens_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert publish_once(path, b"first")
    assert not publish_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name open files")
@pytest.mark.parametrize("write", [write_durably, publish_once])
def test_bytes_are_on_disk_before_the_name_and_the_name_before_returning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append((name, (tmp_path / "file").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "file", b"data")
    (first, named_first), (second, named_second) = synced
    assert first.endswith(".partial")
    assert not named_first
    assert second == tmp_path.name
    assert named_second


def test_publishing_works_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    test_publishing_happens_once(tmp_path)


@pytest.mark.parametrize("write", [write_durably, publish_once])
def test_a_write_that_fails_keeps_the_old_bytes_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="full"):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_that_another_process_swept_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sweeps = Path.replace, iter([True, True, False])

    def replace(self: Path, target: Path) -> Path:
        if next(sweeps):
            sweep_partial(tmp_path)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_durably(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


def test_temporary_files_that_always_vanish_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(self: Path, target: Path) -> Path:
        raise FileNotFoundError(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(FileNotFoundError, match="vanish"):
        write_durably(tmp_path / "file", b"data")


def test_a_missing_folder_is_not_taken_for_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="partial"):
        write_durably(tmp_path / "nowhere" / "file", b"data")


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
