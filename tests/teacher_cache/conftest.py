"""Fixtures of the teacher-cache tests: a small build that can be run step by step."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import CacheCard, Failure, Plan
from medalign.teacher_cache.storage.local import LocalStorage, Storage
from medalign.teacher_cache.writer import TeacherCacheWriter

ROWS = 10


class SmallBuild:
    """Ten rows in shards of four, one of them broken, plus one image that has no row at all."""

    def __init__(self, card: CacheCard, rows: Callable[..., dict[str, npt.NDArray[Any]]]) -> None:
        self.card = card
        self.rows = rows
        digests = [hashlib.sha256(bytes([row])).hexdigest() for row in range(ROWS)]
        paths = {f"images/{row}.png": row for row in range(ROWS)} | {"again/é 5.png": 5}
        self.plan = Plan(
            content=tuple(digests), paths=paths, failures=(Failure("bad/no.png", "zero bytes"),)
        )
        self.failures = {6: "truncated file"}

    def begin(self, store: Path) -> TeacherCacheWriter:
        return TeacherCacheWriter.begin(store, self.card, self.plan)

    def write(self, writer: TeacherCacheWriter, shards: Iterable[int] | None = None) -> None:
        for shard in writer.pending() if shards is None else shards:
            span = writer.rows_of(shard)
            lost = {row: why for row, why in self.failures.items() if row in span}
            writer.write(shard, **self.rows(self.card, span), failures=lost)


@pytest.fixture
def small(
    synthetic_card: Callable[..., CacheCard],
    synthetic_rows: Callable[..., dict[str, npt.NDArray[Any]]],
) -> SmallBuild:
    return SmallBuild(synthetic_card(grid="3x2", width=5), synthetic_rows)


class ReadOnly:
    """A folder that cannot be written, even by root."""

    def __init__(self, folder: Path) -> None:
        self._storage = LocalStorage(folder)

    def __str__(self) -> str:
        return str(self._storage)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def write(self, name: str, data: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{name}: {len(data)} bytes")

    def publish(self, name: str, data: bytes) -> bool:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{name}: {len(data)} bytes")

    def delete(self, name: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)


@pytest.fixture
def read_only() -> Any:
    """Give the class of a storage that refuses to be written."""
    return ReadOnly


def _content(number: int) -> str:
    return hashlib.sha256(f"content {number}".encode()).hexdigest()


def _content_rows(card: CacheCard, content: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Rows that depend on the image only, as an expert's do."""
    features, attention, sizes = [], [], []
    for digest in content:
        rng = np.random.default_rng(list(bytes.fromhex(digest)))
        features.append(rng.random((card.grid.size, card.expert.width)))
        attention.append(rng.random(card.grid.size))
        sizes.append(rng.integers(1, 99, 2))
    return {
        "features": np.array(features, np.float16),
        "attention": np.array(attention, np.float32),
        "valid": np.ones((len(content), card.grid.size), np.bool_),
        "source_size": np.array(sizes, np.int32),
    }


class Folder:
    """A folder of images that changes with time, and caches built from it.

    `images` maps a path to the number of its content; None cannot be read at all, and contents
    from 100 on cannot be decoded.
    """

    def __init__(self, card: CacheCard, images: dict[str, int | None]) -> None:
        self.card = card
        self.images = images

    def plan(self) -> Plan:
        contents = list(dict.fromkeys(data for data in self.images.values() if data is not None))
        readable = {path: data for path, data in self.images.items() if data is not None}
        return Plan(
            content=tuple(map(_content, contents)),
            paths={path: contents.index(data) for path, data in readable.items()},
            failures=tuple(Failure(path, "no file") for path in self.images.keys() - readable),
        )

    def begin(self, store: Path | Storage) -> TeacherCacheWriter:
        return TeacherCacheWriter.begin(store, self.card, self.plan())

    def build(self, store: Path | Storage) -> list[int]:
        """Write what is pending, and say which shards that was."""
        writer = self.begin(store)
        broken = {_content(number) for number in range(100, 110)}
        pending: list[int] = writer.pending()
        for shard in pending:
            span = writer.rows_of(shard)
            content = [writer.plan.content_of(row) for row in span]
            lost = {row: "cut" for row, data in zip(span, content, strict=True) if data in broken}
            writer.write(shard, **_content_rows(self.card, content), failures=lost)
        return pending

    def wanted(self, path: str) -> dict[str, npt.NDArray[Any]]:
        """What a cache has to say of an image."""
        number = self.images[path]
        assert number is not None
        rows = _content_rows(self.card, [_content(number)])
        return {name: values[0] for name, values in rows.items()}


@pytest.fixture
def folder(synthetic_card: Callable[..., CacheCard]) -> Callable[..., Folder]:
    """Make a folder of images: `folder({"a.png": 1, "b.png": None}, shard_rows=2)`."""

    def make(images: dict[str, int | None], **card: Any) -> Folder:
        return Folder(synthetic_card(grid="1x2", width=3, **card), images)

    return make


BUILD = """
import hashlib, json, sys, time
import numpy as np
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.schema import CacheCard, Plan
from medalign.teacher_cache.writer import TeacherCacheWriter

store, card, images, part, parts, slowly = json.loads(sys.argv[1])
card = CacheCard.from_json(card)
content = tuple(hashlib.sha256(str(image).encode()).hexdigest() for image in range(images))
plan = Plan(content=content, paths={f"{image}.png": image for image in range(images)})
print("ready", flush=True)
writer = TeacherCacheWriter.begin(store, card, plan)
for shard in writer.pending(part, parts):
    span = writer.rows_of(shard)
    seeds = [list(bytes.fromhex(writer.plan.content_of(row))) for row in span]
    values = np.stack([np.random.default_rng(seed).random((6, 5)) for seed in seeds])
    if slowly:
        time.sleep(0.05)
    writer.write(
        shard,
        features=values.astype("f2"),
        attention=values[:, :, 0].astype("f4"),
        valid=np.ones((len(span), 6), bool),
        source_size=np.full((len(span), 2), 9, "i4"),
    )
if parts == 1:
    seal(store)
"""


class Processes:
    """Builds in processes of their own, past their imports; none survives the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self,
        store: Path,
        card: CacheCard,
        part: tuple[int, int] = (1, 1),
        *,
        images: Sequence[int] = (24,),
        slowly: bool = False,
    ) -> subprocess.Popen[str]:
        """Build the first `sum(images)` images; a build in one part is sealed as well."""
        job = json.dumps([str(store), card.to_json(), sum(images), *part, slowly])
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", BUILD, job]
        self._started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        out = self._started[-1].stdout
        assert out is not None
        assert out.readline() == "ready\n"
        return self._started[-1]

    def finish(self, process: subprocess.Popen[str]) -> None:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors

    def undisturbed(self, card: CacheCard, images: Sequence[int] = (24,)) -> list[str]:
        """Return the content hash after each generation of a build that nobody disturbed."""
        hashes = []
        for count in range(1, len(images) + 1):
            self.finish(self.start(self._folder, card, images=images[:count]))
            hashes.append(str(TeacherCache.open(self._folder).content_hash))
        return hashes

    def kill(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate(timeout=60)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Start builds in processes of their own."""
    started = Processes(tmp_path / "undisturbed")
    yield started
    started.kill()


@pytest.fixture
def tiny_card(synthetic_card: Callable[..., CacheCard]) -> CacheCard:
    """Make the card that `processes` build with."""
    return synthetic_card(grid="3x2", width=5, shard_rows=2)
