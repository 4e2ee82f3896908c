import errno
import os
import pickle  # noqa: TID251 - what worker processes do to a storage
from pathlib import Path

import pytest

from medalign.teacher_cache.storage.local import (
    LocalStorage,
    explaining_disk_errors,
    open_storage,
    read_json,
    sha256_of,
)
from medalign.teacher_cache.storage.untrusted import DamagedError, TeacherCacheError


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


def test_a_folder_is_opened_by_path_text_or_storage(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    assert storage == open_storage(str(tmp_path)) == open_storage(storage)
    assert storage.url == str(storage) == str(tmp_path)


def test_what_is_written_is_read_whole_and_in_ranges(storage: LocalStorage) -> None:
    assert not storage.exists()
    storage.write("a/b/c", b"old")
    storage.write("a/b/c", b"0123456789")
    assert storage.exists()
    assert storage.read("a/b/c", 10) == b"0123456789"
    assert storage.size("a/b/c") == 10
    buffer = bytearray(4)
    storage.read_into("a/b/c", 3, memoryview(buffer))
    assert buffer == b"3456"
    assert sha256_of(storage, "a/b/c").startswith("84d89877")
    assert pickle.loads(pickle.dumps(storage)).read("a/b/c", 10) == b"0123456789"


def test_publishing_happens_once(storage: LocalStorage) -> None:
    assert storage.publish("a/b", b"first")
    assert not storage.publish("a/b", b"second")
    assert storage.read("a/b", 9) == b"first"


@pytest.mark.parametrize("name", ["a", "a/b", "file/below", ""])
def test_what_is_no_file_is_absent(storage: LocalStorage, name: str) -> None:
    storage.write("file", b"")
    (storage.folder / "a").mkdir()
    assert storage.size(name) is None
    with pytest.raises(FileNotFoundError):
        storage.read(name, 10)
    with pytest.raises(FileNotFoundError):
        storage.read_into(name, 0, memoryview(bytearray(1)))


def test_a_file_that_is_too_long_or_too_short_is_damaged(storage: LocalStorage) -> None:
    storage.write("file", b"12345")
    with pytest.raises(DamagedError, match="store/file is longer than the 4 bytes"):
        storage.read("file", 4)
    for start in (3, 9):
        with pytest.raises(DamagedError, match=r"store/file ends at [59]"):
            storage.read_into("file", start, memoryview(bytearray(3)))


def test_deleting_leaves_no_empty_folder_behind(storage: LocalStorage) -> None:
    storage.write("a/b/c", b"")
    storage.write("a/d", b"")
    storage.delete("a/b/c")
    storage.delete("a/b/c")
    assert sorted(path.name for path in storage.folder.rglob("*")) == ["a", "d"]
    storage.delete("a/d")
    assert storage.exists()


def test_files_are_listed_at_any_depth_and_leftovers_are_swept(storage: LocalStorage) -> None:
    assert list(storage.files()) == []
    storage.write("a/b/c", b"123")
    storage.write("d", b"1")
    (storage.folder / "a" / ".x.1-2.partial").write_bytes(b"torn")
    assert storage.sweep() == 1
    assert sorted(storage.files()) == [("a/b/c", 3), ("d", 1)]
    assert list(storage.files("a")) == [("a/b/c", 3)]


@pytest.mark.parametrize("name", ["features", "a/b"])
def test_a_folder_behind_a_link_is_refused(
    storage: LocalStorage, tmp_path: Path, name: str
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "c.0").write_bytes(b"12")
    storage.write("a/file", b"1")
    (storage.folder / name).symlink_to(tmp_path / "disk")
    for listed in ("", name):
        with pytest.raises(TeacherCacheError, match=f"store/{name} is a link; put the folder"):
            list(storage.files(listed))


def test_a_store_and_its_files_may_be_links(storage: LocalStorage, tmp_path: Path) -> None:
    storage.write("a/b", b"12")
    (storage.folder / "a" / "c").symlink_to(storage.folder / "a" / "b")
    (storage.folder / "a" / "nothing").symlink_to(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(storage.folder)
    linked = LocalStorage(tmp_path / "link")
    assert list(linked.files()) == [("a/b", 2), ("a/c", 2)]
    assert list(linked.files("a")) == [("a/b", 2), ("a/c", 2)]


def test_a_folder_that_is_deleted_while_a_file_is_written_is_made_again(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("a/b", b"")
    real, deletions = Path.replace, iter([True, False])

    def replace(self: Path, target: Path) -> Path:
        if next(deletions):
            self.unlink()
            self.parent.rmdir()
        return real(self, target)

    storage.delete("a/b")
    monkeypatch.setattr(Path, "replace", replace)
    storage.write("a/b", b"data")
    assert storage.read("a/b", 4) == b"data"


def test_json_that_cannot_be_read_is_told_apart(storage: LocalStorage) -> None:
    with pytest.raises(TeacherCacheError, match=r"x\.json is missing") as caught:
        read_json(storage, "x.json", 10)
    assert not isinstance(caught.value, DamagedError)
    for data in (b"", b"{", b'"\xff"', b"[" * 9, b"1" * 11):
        storage.write("x.json", data)
        with pytest.raises(DamagedError, match=r"x\.json is damaged"):
            read_json(storage, "x.json", 10)
    storage.write("x.json", b"[1, 2]")
    assert read_json(storage, "x.json", 6) == [1, 2]


def test_disk_errors_name_the_store_and_the_way_on(tmp_path: Path) -> None:
    def fail(number: int) -> None:
        with explaining_disk_errors(LocalStorage(tmp_path), "sealing"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(TeacherCacheError, match=f"no space left while sealing {tmp_path}"):
        fail(errno.ENOSPC)
    with pytest.raises(TeacherCacheError, match=f"failed while sealing {tmp_path}"):
        fail(errno.EACCES)
