import errno
import os
import pickle  # noqa: TID251 - what worker processes do to a cache
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from medalign.runtime.files import Draft
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.seal import reopen, seal
from medalign.teacher_cache.storage import read_through as nearby
from medalign.teacher_cache.storage.read_through import NearbyFiles
from medalign.teacher_cache.storage.untrusted import DamagedError, TeacherCacheError

MB = 2**20


class Server:
    """Files of a remote store, and what was asked for."""

    def __init__(self, url: str = "s3://bucket/cache", **files: bytes) -> None:
        self.url = url
        self.files = files
        self.requests: list[tuple[str, int, int] | str] = []

    def __str__(self) -> str:
        return self.url

    def size(self, name: str) -> int | None:
        self.requests.append(name)
        return len(self.files[name]) if name in self.files else None

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        self.requests.append((name, start, len(buffer)))
        buffer[:] = self.files[name][start : start + len(buffer)]


@pytest.fixture
def server() -> Server:
    rng = np.random.default_rng(0)
    return Server(large=rng.bytes(3 * MB), small=rng.bytes(5000), other=rng.bytes(3 * MB))


def near(server: Server, folder: Path, limit: int = 100 * MB, identity: str = "1") -> NearbyFiles:
    return NearbyFiles(server, folder, limit, identity)


def read(files: NearbyFiles, name: str, start: int, size: int) -> bytes:
    buffer = bytearray(size)
    files.read_into(name, start, memoryview(buffer))
    return bytes(buffer)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_range_is_asked_for_once_by_all_processes(server: Server, tmp_path: Path) -> None:
    for _ in range(3):
        files = near(server, tmp_path)
        for start in (0, 7 * 4096, 2 * MB):
            assert read(files, "large", start, 60_000) == server.files["large"][start:][:60_000]
        assert files.size("large") == 3 * MB
        assert files.size("absent") is None
    ranges = [request for request in server.requests if request != "absent"]
    assert ranges == ["large", *(("large", start, 60_000) for start in (0, 7 * 4096, 2 * MB))]
    back = pickle.loads(pickle.dumps(files))
    assert read(back, "large", 0, 60_000) == server.files["large"][:60_000]


def test_a_small_file_is_fetched_whole(server: Server, tmp_path: Path) -> None:
    for start in (0, 100, 4990):
        assert (
            read(near(server, tmp_path), "small", start, 10) == server.files["small"][start:][:10]
        )
    assert server.requests == ["small", ("small", 0, 5000)]


def test_another_content_at_the_same_place_is_another_cache(server: Server, tmp_path: Path) -> None:
    read(near(server, tmp_path), "small", 0, 10)
    server.files["small"] = bytes(5000)
    assert read(near(server, tmp_path, identity="2"), "small", 0, 10) == bytes(10)
    assert read(near(server, tmp_path), "small", 0, 10) != bytes(10)


def test_a_store_that_claims_the_identity_of_another_leaves_no_rows_for_it(
    server: Server, tmp_path: Path
) -> None:
    liar = Server("s3://elsewhere/cache", small=bytes(5000))
    assert read(near(liar, tmp_path), "small", 0, 10) == bytes(10)
    assert read(near(server, tmp_path), "small", 0, 10) == server.files["small"][:10] != bytes(10)


def test_what_is_forgotten_is_fetched_again(server: Server, tmp_path: Path) -> None:
    files = near(server, tmp_path)
    assert not files.forget("large")
    for _ in range(2):
        read(files, "large", 0, 9)
        assert files.forget("large")
    assert server.requests == ["large", ("large", 0, 9)] * 2


@pytest.mark.parametrize("spoil", ["short", "empty", "long", "folder"])
def test_a_kept_file_of_the_wrong_length_is_fetched_again(
    server: Server, tmp_path: Path, spoil: str
) -> None:
    files = near(server, tmp_path)
    expected = read(files, "large", 0, 99)
    for path in tmp_path.rglob("*"):
        if path.name in ("0-99", "size"):
            data = path.read_bytes()
            path.unlink()
            if spoil == "folder":
                path.mkdir()
            else:
                path.write_bytes({"short": data[:-1], "empty": b"", "long": data + b"1"}[spoil])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a folder cannot be replaced by a file
        assert read(near(server, tmp_path), "large", 0, 99) == expected
    assert len(server.requests) == 4


def test_the_folder_never_exceeds_its_limit_and_keeps_what_came_first(
    server: Server, tmp_path: Path
) -> None:
    limit = MB
    files = near(server, tmp_path, limit)
    for start in range(0, 3 * MB, 2**17):
        assert read(files, "large", start, 2**17) == server.files["large"][start:][: 2**17]
        assert used(tmp_path) <= limit
    assert used(tmp_path) > limit / 2
    count = len(server.requests)
    read(files, "large", 0, 2**17)
    assert len(server.requests) == count


def test_what_other_caches_left_goes_first_unless_somebody_uses_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearby, "_RECOUNT_SECONDS", -1)
    read(near(server, tmp_path, MB, "old"), "large", 0, MB // 2)
    read(near(server, tmp_path, MB, "used"), "large", 0, MB // 4)
    (partial := tmp_path / ".x.1-2.partial").write_bytes(bytes(MB // 8))
    old = next(path for path in tmp_path.rglob("0-524288"))
    for path in (old, partial):
        os.utime(path, (0, 0))
    files = near(server, tmp_path, MB)
    read(files, "other", 0, MB // 2)
    assert not old.exists()
    assert not partial.exists()
    assert len(list(tmp_path.rglob("0-262144"))) == 1
    read(files, "other", MB, MB // 2)  # no room: what is used stays, of others and of our own
    assert len(list(tmp_path.rglob("*-*"))) == 2
    assert used(tmp_path) <= MB


def test_reading_keeps_an_old_entry_young(server: Server, tmp_path: Path) -> None:
    files = near(server, tmp_path)
    read(files, "large", 0, 99)
    path = next(tmp_path.rglob("0-99"))
    os.utime(path, (0, 0))
    read(files, "large", 0, 99)
    assert path.stat().st_mtime > 0


def test_a_full_disk_is_said_once_and_reading_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_draft: Draft, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files = near(server, tmp_path)
    read(files, "large", 0, 99)
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "write", full)
        with pytest.warns(RuntimeWarning, match="no longer kept in .*No space left"):
            assert read(files, "other", 0, 99) == server.files["other"][:99]
        assert read(files, "other", 0, 99) == server.files["other"][:99]
    assert not list(tmp_path.rglob("*.partial"))
    count = len(server.requests)
    read(files, "large", 0, 99)  # what was kept before still serves
    assert len(server.requests) == count


@pytest.mark.parametrize("times", [1, 2])
def test_a_folder_that_another_worker_removes_meanwhile_is_made_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    files = near(server, tmp_path)
    place = Draft.place
    removed: list[Path] = []
    files.size("large")

    def raced(draft: Draft) -> bool:
        if len(removed) < times:
            removed.append(draft.path)
            shutil.rmtree(draft.path.parent)
        placed: bool = place(draft)
        return placed

    monkeypatch.setattr(Draft, "place", raced)
    for _ in range(3):
        assert read(files, "large", 0, 99) == server.files["large"][:99]
    assert len(removed) == times
    assert server.requests == ["large", *[("large", 0, 99)] * times]  # kept, if later
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_cannot_be_made_is_said_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    files = near(server, tmp_path / "file")
    with pytest.warns(RuntimeWarning, match="they are read from the server each time"):
        assert read(files, "large", 0, 99) == server.files["large"][:99]
    assert read(files, "large", 0, 99) == server.files["large"][:99]


def test_many_at_once_share_a_folder(server: Server, tmp_path: Path) -> None:
    def job(number: int) -> bool:
        files, rng = near(server, tmp_path, 2 * MB), np.random.default_rng(number)
        starts = rng.integers(0, 700, 60) * 4096
        return all(
            read(files, "large", start, 4096) == server.files["large"][start:][:4096]
            for start in starts.tolist()
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(job, range(8)))
    assert used(tmp_path) <= 2 * MB


@pytest.fixture
def store(small: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    small.write(small.begin("memory://bucket/cache"))
    seal("memory://bucket/cache")
    return "memory://bucket/cache"


def damage_kept(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "total"]
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)
    return len(files)


def test_damage_in_the_folder_is_mended_from_the_server(store: str, tmp_path: Path) -> None:
    expected = TeacherCache.open(store)[5]
    assert np.array_equal(TeacherCache.open(store, nearby=tmp_path)[5].features, expected.features)
    for _ in range(2):
        assert damage_kept(tmp_path) >= 8
        actual = TeacherCache.open(store, nearby=tmp_path)[5]
        assert np.array_equal(actual.features, expected.features)
        assert np.array_equal(actual.attention, expected.attention)
    MemoryFileSystem.store.clear()


def test_damage_on_the_server_stays_an_error(store: str, tmp_path: Path) -> None:
    for name, file in MemoryFileSystem.store.items():
        if name.endswith("features/c.1.0.0"):
            file.getbuffer()[3] ^= 1
    cache = TeacherCache.open(store, nearby=tmp_path)
    with pytest.raises(DamagedError, match="row 4 of memory://bucket/cache: features is damaged"):
        cache[4]
    assert cache[8].features.shape == (6, 5)


def test_rows_are_read_without_the_server_once_they_are_near(store: str, tmp_path: Path) -> None:
    rows = [row for row in range(10) if row != 6]
    expected = TeacherCache.open(store, nearby=tmp_path).read(rows)
    cache = TeacherCache.open(store, nearby=tmp_path)
    MemoryFileSystem.store.clear()
    assert np.array_equal(cache.read(rows).features, expected.features)
    assert np.array_equal(pickle.loads(pickle.dumps(cache))[5].features, expected.features[5])


def test_a_rebuilt_store_is_never_mixed_with_what_was_kept(
    small: Any, store: str, tmp_path: Path
) -> None:
    TeacherCache.open(store, nearby=tmp_path).read([0, 5])
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    rows_of = small.rows
    small.rows = lambda card, span: rows_of(card, span, seed=1)
    small.write(small.begin(store))
    seal(store)
    actual, expected = TeacherCache.open(store, nearby=tmp_path)[5], TeacherCache.open(store)[5]
    assert np.array_equal(actual.features, expected.features)


def test_a_local_store_or_an_unsealed_one_is_not_copied(
    small: Any, store: str, tmp_path: Path
) -> None:
    small.write(small.begin(tmp_path / "cache"))
    folder = tmp_path / "near"
    assert TeacherCache.open(tmp_path / "cache", allow_building=True, nearby=folder)[5].valid.all()
    seal(tmp_path / "cache")
    assert TeacherCache.open(tmp_path / "cache", nearby=folder)[5].valid.all()
    assert not folder.exists()
    with pytest.raises(TeacherCacheError, match="does not exist"):
        TeacherCache.open(f"{store}2", nearby=folder)
    assert reopen(store) == []
