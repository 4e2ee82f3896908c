import os
import pickle  # noqa: TID251 - what worker processes do to a storage
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.storage import remote
from medalign.teacher_cache.storage.local import LocalStorage, open_storage
from medalign.teacher_cache.storage.remote import RemoteStorage
from medalign.teacher_cache.storage.untrusted import DamagedError, TeacherCacheError


class Faulty(MemoryFileSystem):  # type: ignore[misc]
    """A memory whose next answers are errors, or cut short by so many bytes."""

    protocol = "faulty"
    faults: list[BaseException | int]
    requests: int

    def cat_file(self, path: str, **range_: Any) -> bytes:
        data: bytes = self._spoilt(super().cat_file, path, **range_)
        return data

    def info(self, path: str, **options: Any) -> Any:
        return self._spoilt(super().info, path, **options)

    def pipe_file(self, path: str, value: bytes, **options: Any) -> Any:
        return self._spoilt(super().pipe_file, path, value, **options)

    def _spoilt(self, call: Any, *args: Any, **options: Any) -> Any:
        Faulty.requests += 1
        fault = Faulty.faults.pop(0) if Faulty.faults else 0
        if isinstance(fault, BaseException):
            raise fault
        actual = call(*args, **options)
        return actual[: len(actual) - fault] if fault else actual


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> RemoteStorage:
    monkeypatch.setattr(remote, "_WAITS", (0, 0, 0))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(Faulty, "faults", [], raising=False)
    monkeypatch.setattr(Faulty, "requests", 0, raising=False)
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    return RemoteStorage("faulty://bucket/cache/")


def with_status(status: int, error: type[Exception] = Exception) -> Exception:
    actual = error(f"status {status}")
    actual.status = status  # type: ignore[attr-defined]
    return actual


def test_a_url_is_opened_as_what_it_names() -> None:
    storage = open_storage("memory://bucket/cache/")
    assert isinstance(storage, RemoteStorage)
    assert storage.url == str(storage) == "memory://bucket/cache"


def test_what_is_written_is_read_whole_and_in_ranges(storage: RemoteStorage) -> None:
    assert not storage.exists()
    storage.write("a/b", b"old")
    storage.write("a/b", b"0123456789")
    assert storage.exists()
    assert storage.read("a/b", 10) == b"0123456789"
    assert (storage.size("a/b"), storage.size("a"), storage.size("c")) == (10, None, None)
    buffer = bytearray(4)
    storage.read_into("a/b", 3, memoryview(buffer))
    assert buffer == b"3456"
    with pytest.raises(DamagedError, match="cache/a/b is longer than the 9 bytes"):
        storage.read("a/b", 9)
    with pytest.raises(DamagedError, match="cache/a/b ends at 10"):
        storage.read_into("a/b", 7, memoryview(buffer))
    for name in ("a", "c", "a/b/c"):
        with pytest.raises(FileNotFoundError):
            storage.read_into(name, 0, memoryview(buffer))


def test_publishing_happens_once(storage: RemoteStorage) -> None:
    assert storage.publish("a/b", b"first")
    assert not storage.publish("a/b", b"second")
    assert storage.read("a/b", 9) == b"first"
    Faulty.faults = [0, with_status(412)]  # somebody else, since we looked
    assert not storage.publish("c", b"third")


def test_where_the_server_knows_no_condition_publishing_writes(storage: RemoteStorage) -> None:
    Faulty.faults = [0, NotImplementedError()]
    assert storage.publish("a", b"first")
    Faulty.faults = [0, with_status(501)]
    assert storage.publish("b", b"first")
    assert storage.read("b", 9) == b"first"


def test_files_are_those_below_the_folder_and_no_neighbour(storage: RemoteStorage) -> None:
    for name in ("zarr.json", "a/b", "a/c/d", "ab"):
        storage.write(name, name.encode())
    RemoteStorage("faulty://bucket/cache2").write("x", b"")
    assert sorted(storage.files()) == [("a/b", 3), ("a/c/d", 5), ("ab", 2), ("zarr.json", 9)]
    assert sorted(storage.files("a")) == [("a/b", 3), ("a/c/d", 5)]
    assert list(storage.files("none")) == []
    storage.delete("a/b")
    storage.delete("a/b")
    assert sorted(storage.files("a")) == [("a/c/d", 5)]
    assert storage.sweep() == 0


PASSING = [
    ConnectionResetError("reset"),
    TimeoutError("slow"),
    with_status(500),
    with_status(503, OSError),
    with_status(429),
    4,  # bytes that are missing at the end of an answer
    10,
]


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_what_passes_by_itself_is_tried_again(storage: RemoteStorage, fault: Any) -> None:
    storage.write("a", b"0123456789")
    buffer = bytearray(10)
    # after a short answer the size is asked for
    Faulty.faults = [fault, 0, fault] if isinstance(fault, int) else [fault, fault]
    storage.read_into("a", 0, memoryview(buffer))
    assert buffer == b"0123456789"
    if not isinstance(fault, int):
        Faulty.faults = [fault, fault, fault]
        assert storage.size("a") == 10
        Faulty.faults = [fault, fault, fault]
        assert storage.read("a", 99) == buffer
        Faulty.faults = [fault, fault]
        storage.write("b", b"new")
        assert storage.read("b", 3) == b"new"


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_trying_again_ends_and_nothing_is_taken_for_data(
    storage: RemoteStorage, fault: Any
) -> None:
    storage.write("a", b"0123456789")
    buffer = bytearray(b"untouched.")
    Faulty.faults = [fault, 0] * 9 if isinstance(fault, int) else [fault] * 9
    Faulty.requests = 0
    with pytest.raises(TeacherCacheError, match=r"reading a failed: .*tried several times"):
        storage.read_into("a", 0, memoryview(buffer))
    assert buffer == b"untouched."
    assert Faulty.requests == (8 if isinstance(fault, int) else 4)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (PermissionError("no"), "reading a failed: no; access is refused: check the credentials"),
        (with_status(403), "access is refused"),
        (with_status(401), "access is refused"),
        (with_status(400), "check the URL and the endpoint"),
        (OSError(22, "InvalidBucketName"), "check the URL and the endpoint"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate"), "AWS_ACCESS_KEY_ID"),
    ],
    ids=str,
)
def test_what_trying_again_cannot_mend_ends_at_once_in_one_line(
    storage: RemoteStorage, fault: Exception, message: str
) -> None:
    Faulty.faults = [fault]
    with pytest.raises(TeacherCacheError, match=message) as caught:
        storage.read("a", 1)
    assert Faulty.requests == 1
    assert str(caught.value).startswith("faulty://bucket/cache: ")
    assert "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_named_when_writing(storage: RemoteStorage) -> None:
    Faulty.faults = [FileNotFoundError("The specified bucket does not exist")]
    with pytest.raises(TeacherCacheError, match=r"bucket does not exist.*make the bucket first"):
        storage.write("a", b"")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://bucket/x", "opening failed: Protocol not known: nonsense"),
        ("absent://bucket/x", r"install what it names"),
        ("gs://bucket/x", r"pip install 'medalign\[gcs\]'"),
    ],
)
def test_what_is_not_installed_is_said(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_args: Any, **_options: Any) -> None:
        raise ImportError("no such package")

    if not url.startswith("nonsense"):
        monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(TeacherCacheError, match=message):
        open_storage(url).size("a")


def test_each_process_connects_by_itself(
    storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("a", b"1")
    parent = storage._at("a")[0]
    assert storage._at("b")[0] is parent
    data = pickle.dumps(storage)
    assert b"Faulty" not in data
    assert pickle.loads(data).read("a", 1) == b"1"
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert storage._at("a")[0] is not parent
    assert storage.read("a", 1) == b"1"


class Handler(BaseHTTPRequestHandler):
    """Serves files in ranges; other paths are an answer or a kind of silence."""

    content: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        name = self.path.removeprefix("/store/")
        data, status = self.content.get(name, b"0123456789"), 200
        if name == "drop":
            return  # hangs up without a word
        if name.isdecimal():
            data, status = b"", int(name)
        elif name not in self.content and name != "whole":
            data, status = b"", 404
        requested = self.headers.get("Range")
        if requested and name in self.content:
            start, stop = requested.removeprefix("bytes=").split("-")
            data, status = data[int(start) : int(stop) + 1], 206
            status = 206 if data else 416
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="http:// takes aiohttp: pip install 'medalign[http]'")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    Handler.content["a"] = b"0123456789"
    yield f"http://127.0.0.1:{server.server_port}/store"
    server.shutdown()
    server.server_close()


def test_a_web_server_is_read(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WAITS", (0,))
    storage = RemoteStorage(site)
    assert storage.read("a", 10) == b"0123456789"
    buffer = bytearray(4)
    storage.read_into("a", 3, memoryview(buffer))
    assert buffer == b"3456"
    assert (storage.size("a"), storage.size("404")) == (10, None)
    with pytest.raises(DamagedError, match="a ends at 10"):
        storage.read_into("a", 80, memoryview(buffer))
    with pytest.raises(FileNotFoundError):
        storage.read("404", 10)
    with pytest.raises(TeacherCacheError, match="sends whole files in answer to a range"):
        storage.read_into("whole", 3, memoryview(buffer))
    for name, message in {"drop": "tried several", "503": "tried", "403": "refused"}.items():
        with pytest.raises(TeacherCacheError, match=f"reading {name} failed: .*{message}"):
            storage.read(name, 10)
        with pytest.raises(TeacherCacheError, match=f"looking for {name} failed: .*{message}"):
            storage.size(name)


def test_a_web_server_is_never_written(site: str) -> None:
    storage = RemoteStorage(site)
    with pytest.raises(TeacherCacheError, match="does not list its files"):
        list(storage.files())
    for call, arguments in (
        (storage.write, ("a", b"")),
        (storage.publish, ("b", b"")),
        (storage.delete, ("a",)),
    ):
        with pytest.raises(TeacherCacheError, match="can only be read; write to a folder or an"):
            call(*arguments)


@pytest.mark.usefixtures("site")
def test_a_server_that_is_not_there_is_an_error_and_not_an_absent_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "_WAITS", (0,))
    nobody = RemoteStorage("http://127.0.0.1:9/store")
    calls: tuple[Callable[[], object], ...] = (
        nobody.exists,
        lambda: nobody.size("a"),
        lambda: nobody.read("a", 1),
    )
    for call in calls:
        with pytest.raises(TeacherCacheError, match="tried several times"):
            call()


def test_rows_are_read_from_a_web_server(small: Any, site: str, tmp_path: Path) -> None:
    small.write(small.begin(tmp_path / "cache"))
    seal(tmp_path / "cache")
    files = LocalStorage(tmp_path / "cache")
    Handler.content |= {f"cache/{name}": files.read(name, 2**20) for name, _ in files.files()}
    cache, expected = TeacherCache.open(f"{site}/cache"), TeacherCache.open(files)
    assert cache.content_hash == expected.content_hash
    assert np.array_equal(cache["images/5.png"].features, expected[5].features)
    with pytest.raises(TeacherCacheError, match=f"{site}/none does not exist"):
        TeacherCache.open(f"{site}/none")
