import errno
import os
import pickle  # noqa: TID251 - what worker processes do to a cache
import resource
from pathlib import Path

import pytest

from medalign.teacher_cache.storage import local
from medalign.teacher_cache.storage.local import LocalStorage, OpenFiles
from medalign.teacher_cache.storage.untrusted import DamagedError

COUNT = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(COUNT):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * 100)
    return tmp_path


def read(files: OpenFiles, name: str, start: int = 90, size: int = 10) -> bytes:
    buffer = bytearray(size)
    files.read_into(name, start, memoryview(buffer))
    return bytes(buffer)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_ranges_are_read_and_files_stay_open(folder: Path) -> None:
    files, before = OpenFiles(LocalStorage(folder)), descriptors()
    for _ in range(3):
        assert [read(files, f"{n}") for n in range(COUNT)] == [
            bytes([n]) * 10 for n in range(COUNT)
        ]
        assert descriptors() == before + COUNT
    (folder / "7").unlink()
    assert read(files, "7") == bytes([7]) * 10
    del files
    assert descriptors() == before


def test_a_short_or_missing_file_is_an_error(folder: Path) -> None:
    files = OpenFiles(LocalStorage(folder))
    with pytest.raises(DamagedError, match="ends at 100"):
        read(files, "1", 95)
    with pytest.raises(FileNotFoundError):
        read(files, "no/such")
    assert (files.size("1"), files.size("none")) == (100, None)


def test_no_more_files_stay_open_than_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_MOST_OPEN", 5)
    files, before = OpenFiles(LocalStorage(folder)), descriptors()
    for n in range(COUNT):
        read(files, "0")
        read(files, f"{n}")
        assert descriptors() <= before + 5
    (folder / "0").unlink()
    assert read(files, "0") == bytes(10)  # used most, so it was never closed


def test_running_out_of_descriptors_closes_ours_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = OpenFiles(LocalStorage(folder))
    monkeypatch.setattr(files, "_most", 1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 9, hard))
    try:
        assert [read(files, f"{n}") for n in range(COUNT)] == [
            bytes([n]) * 10 for n in range(COUNT)
        ]
        with pytest.raises(FileNotFoundError) as caught:
            read(files, "none")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.ENOENT


def test_a_forked_child_opens_files_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, before = OpenFiles(LocalStorage(folder)), descriptors()
    read(files, "1")
    read(files, "2")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    (folder / "1").unlink()
    (folder / "1").write_bytes(bytes(100))
    assert read(files, "1") == bytes(10)
    assert descriptors() == before + 1


def test_open_files_do_not_travel_with_a_pickle(folder: Path) -> None:
    files = OpenFiles(LocalStorage(folder))
    read(files, "1")
    back = pickle.loads(pickle.dumps(files))
    assert read(back, "1") == bytes([1]) * 10
    assert str(back) == str(files) == str(folder)
