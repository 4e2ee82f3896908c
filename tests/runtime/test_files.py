import errno
import fcntl
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medalign.runtime.checks import UntrustedError
from medalign.runtime.files import (
    Draft,
    append,
    append_lines,
    drafted,
    is_held,
    lock,
    make_folder,
    publish_once,
    put_link,
    read_lines,
    sha256_bytes,
    sha256_file,
    sweep_partial,
    sync_files,
    whole_folder,
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


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'"):
        write_durably(tmp_path / "file", b"data")


def test_a_draft_knows_its_digest_and_is_held_until_it_is_placed(tmp_path: Path) -> None:
    with Draft(tmp_path / "file") as draft:
        draft.write(b"ab")
        draft.write(b"c")
        assert draft.sha256 == sha256_bytes(b"abc")
        (hidden,) = tmp_path.iterdir()
        assert drafted(hidden.name) == "file"
        assert is_held(hidden)
        draft.place()
    assert (tmp_path / "file").read_bytes() == b"abc"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_draft_that_is_not_placed_leaves_nothing(tmp_path: Path) -> None:
    with Draft(tmp_path / "file") as draft:
        draft.write(b"half")
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (".train.jsonl.12-0a3f.partial", "train.jsonl"),
        ("train.jsonl.12.partial", "train.jsonl"),  # of earlier versions
        ("train.jsonl", ""),
        ("train.jsonl.partial", ""),
        ("train.jsonl.mine.partial", ""),
    ],
)
def test_drafts_are_recognised_by_their_names(name: str, file: str) -> None:
    assert drafted(name) == file


def test_a_leftover_of_a_killed_run_is_not_held(tmp_path: Path) -> None:
    (tmp_path / ".file.1-a.partial").write_bytes(b"half")
    assert not is_held(tmp_path / ".file.1-a.partial")
    assert is_held(tmp_path / "absent")  # gone: nothing that anybody should delete


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    append_lines(path, [{"a": "\u2028"}, {"a": 2}])
    append(path, b'{"a": 3')
    assert read_lines(path) == [{"a": "\u2028"}, {"a": 2}]
    append(path, b"\n")
    with pytest.raises(UntrustedError, match=r"lines\.jsonl: line 3 is damaged"):
        read_lines(path)


def test_a_digest_is_counted_piece_by_piece(tmp_path: Path) -> None:
    data = bytes(3 << 20) + b"x"
    (tmp_path / "file").write_bytes(data)
    pieces: list[int] = []
    assert sha256_file(tmp_path / "file", pieces.append) == sha256_bytes(data)
    assert len(pieces) > 1
    assert sum(pieces) == len(data)
    assert sync_files(tmp_path) == {"file": {"bytes": len(data), "sha256": sha256_bytes(data)}}


def write_folder(path: Path, text: str) -> None:
    with whole_folder(path) as draft:
        (draft / "file").write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder"
    write_folder(path, "old")
    (path / "stale").write_text("old")
    write_folder(path, "new")
    assert [file.name for file in path.iterdir()] == ["file"]
    assert (path / "file").read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_folder_that_fails_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "folder"
    write_folder(path, "old")

    def fail() -> None:
        with whole_folder(path) as draft:
            (draft / "file").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


class KilledError(BaseException):
    """Stands for a kill: nothing catches it, and nothing is cleaned up after it."""


@pytest.mark.parametrize("call", range(1, 5))
def test_what_a_kill_leaves_of_a_folder_is_swept_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    path = tmp_path / "folder"
    write_folder(path, "old")
    rename, rmtree, calls = Path.rename, shutil.rmtree, itertools.count(1)

    def killed_rename(self: Path, target: Path) -> Path:
        if next(calls) >= call:
            raise KilledError
        return rename(self, target)

    def killed_rmtree(folder: Path, **options: Any) -> None:
        if folder.exists() and next(calls) >= call:
            raise KilledError
        rmtree(folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_rename)
        patch.setattr(shutil, "rmtree", killed_rmtree)
        with pytest.raises(KilledError):
            write_folder(path, "new")
    with pytest.raises(OSError, match="full"), whole_folder(path):
        raise OSError("full")
    # The new one is whole before the old one is touched: only a kill before that loses it.
    assert (path / "file").read_text() == ("old" if call <= 2 else "new")
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_earlier_versions_are_swept(tmp_path: Path) -> None:
    for name in (".folder.writing", ".folder.old", ".other.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    write_folder(tmp_path / "folder", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", ".other.writing"}


def test_a_lock_keeps_others_out_until_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a") as mine, path.open("a") as other:
        assert lock(mine)
        assert not lock(other)
    with path.open("a") as other:
        assert lock(other)


def test_a_file_system_without_locks_is_used_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".file.1-a.partial").write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "lock").open("a") as file:
        assert lock(file)
    # Nobody knows whether it is a leftover, so it stays.
    assert is_held(tmp_path / ".file.1-a.partial")


def test_a_link_is_replaced(tmp_path: Path) -> None:
    for target in ("a", "b"):
        (tmp_path / target).mkdir()
        put_link(tmp_path / "link", target)
        assert (tmp_path / "link").resolve() == tmp_path / target
    assert len(list(tmp_path.iterdir())) == 3
