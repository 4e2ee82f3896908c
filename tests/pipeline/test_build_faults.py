import errno
import itertools
import multiprocessing
import os
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medalign.pipeline.encode import ImageCode, Patches, code_image
from medalign.pipeline.experts import Expert
from medalign.pipeline.pixels import PixelsError
from medalign.pipeline.resample import ExpertOutput
from medalign.pipeline.weights import ExpertError
from medalign.runtime.processes import WorkerDiedError
from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.commits import CommitLog
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.seal import seal


def files_of(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


class Stop(Exception):  # noqa: N818 - stands for a kill
    pass


def stop_at(call: int, error: BaseException) -> Callable[[Expert, torch.Tensor], ExpertOutput]:
    """An `encode` that raises when it is called for the nth time."""
    encode = Expert.encode
    calls = iter(range(1, 1000))

    def stopping(self: Expert, pixels: torch.Tensor) -> ExpertOutput:
        if next(calls) == call:
            raise error
        return encode(self, pixels)

    return stopping


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_a_stopped_build_goes_on_and_equals_an_uninterrupted_one(
    job: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    error: type[BaseException],
) -> None:
    job.build(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Expert, "encode", stop_at(call, error()))
        with pytest.raises(error):
            job.build()
    there = status(job.store).complete
    assert there == {1: 0, 2: 0, 3: 0, 4: 1}[call]  # batches of 3 and 1 rows make a shard
    report = job.build()
    assert report.written == 3 - there
    assert files_of(job.store) == files_of(tmp_path / "whole")
    assert [seal(job.store).content_hash] == [seal(tmp_path / "whole").content_hash]


def test_a_resumed_build_does_not_hash_again(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Expert, "encode", stop_at(2, Stop()))
        with pytest.raises(Stop):
            job.build()
    monkeypatch.setattr("medalign.pipeline.planning.hash_files", None)
    assert job.build().pending == 0


def spoil(job: Any) -> dict[str, str]:
    """Make five images unreadable; return what their reasons say."""
    (job.root / "0.png").write_bytes(b"")
    (job.root / "1.png").write_text("no image")
    whole = (job.root / "2.png").read_bytes()
    (job.root / "2.png").write_bytes(whole[: len(whole) // 2])
    (job.root / "3.png").unlink()
    (job.root / "4.png").unlink()
    (job.root / "4.png").symlink_to("/etc/hostname")
    return {
        "0.png": r"is empty",
        "1.png": r"is not an image",
        "2.png": r"cut short",
        "3.png": r"no such file",
        "4.png": r"leads out of",
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_listed_and_never_fatal(job: Any, workers: int) -> None:
    reasons = spoil(job)
    report = job.build(workers=workers)
    found = {failure.path: failure.reason for failure in report.failures}
    assert set(found) == set(reasons)
    for path, reason in reasons.items():
        assert reason in found[path], found
    assert (report.rows, report.pending) == (7, 0)  # two have bytes and a row, but no pixels
    seal(job.store)
    cache = TeacherCache.open(job.store)
    np.testing.assert_allclose(cache["9.png"].features, job.wanted("9.png")[0], atol=2e-3)
    with pytest.raises(TeacherCacheError, match="is not an image"):
        cache["1.png"]
    assert job.build().failures == report.failures  # a later run still tells them


def test_a_shard_of_unreadable_images_only_is_written(job: Any) -> None:
    for path in job.paths[4:8]:
        (job.root / path).write_text(f"no image {path}")
    report = job.build()
    assert (len(report.failures), report.pending) == (4, 0)
    assert verify(job.store) == []


@pytest.mark.parametrize(
    ("path", "content", "there"), [("3.png", None, None), ("9.png", b"no image", 2)]
)
def test_on_error_fail_names_the_image_and_keeps_what_is_written(
    job: Any, path: str, content: bytes | None, there: int | None
) -> None:
    if content is None:
        (job.root / path).unlink()
    else:
        (job.root / path).write_bytes(content)
    with pytest.raises(PixelsError, match=rf"^{path}: "):
        job.build(on_error="fail")
    if there is None:
        assert not job.store.exists()
    else:
        assert status(job.store).complete == there - 1  # the last whole shard was being fetched


def test_an_image_that_changed_after_planning_gives_no_row(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Expert, "encode", stop_at(1, Stop()))
        with pytest.raises(Stop):
            job.build()
    Image.new("RGB", (30, 30)).save(job.root / "5.png")
    failures = job.build().failures
    assert [failure.path for failure in failures] == ["5.png"]
    assert "changed since the cache was planned" in failures[0].reason


def test_nan_from_the_expert_names_the_images_and_keeps_what_is_written(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = Expert.encode, iter(range(100))

    def broken(self: Expert, pixels: torch.Tensor) -> ExpertOutput:
        output = encode(self, pixels)
        if next(calls) == 3:  # the last batch of the second shard, one image
            output.patches[0, 3, 2] = float("nan")
        return output

    monkeypatch.setattr(Expert, "encode", broken)
    with pytest.raises(ExpertError, match=r"NaN or infinity for 7\.png; .*try --dtype fp32"):
        job.build()
    assert status(job.store).complete == 1
    monkeypatch.setattr(Expert, "encode", encode)
    assert job.build().written == 2


def test_a_full_disk_is_said_and_keeps_what_is_written(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = CommitLog.commit

    def full(self: CommitLog, shard: int, *rest: Any) -> None:
        if shard == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        commit(self, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(CommitLog, "commit", full)
        with pytest.raises(TeacherCacheError, match=r"no space left .* writing shard 1 of"):
            job.build()
    assert 0 not in status(job.store).pending
    assert 1 in status(job.store).pending
    assert job.build().pending == 0


def test_a_worker_that_dies_gives_one_clear_error(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Expert.encode

    def killing(self: Expert, pixels: torch.Tensor) -> ExpertOutput:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        return encode(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Expert, "encode", killing)
        with pytest.raises(WorkerDiedError, match="run the same command again"):
            # More images than may wait decoded, so that workers are still needed.
            job.build(workers=1, batch_size=1)
    assert job.build().pending == 0
    assert verify(job.store) == []


def test_png_headers_are_not_trusted(job: Any) -> None:
    """A PNG of a few bytes that says it has 60000 x 60000 pixels is listed, not decoded."""
    body = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + body
    (job.root / "0.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(body))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
    )
    assert [failure.path for failure in job.build().failures] == ["0.png"]


def test_an_image_that_cannot_be_coded_is_a_failure_with_its_name(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def third_fails(image: Patches) -> ImageCode:
        if next(calls) == 2:
            raise TeacherCacheError("patch 7 of the expert has no length")
        return code_image(image)

    monkeypatch.setattr("medalign.pipeline.encode.code_image", third_fails)
    report = job.build(max_gram_error=1e-2, workers=0)
    assert [each.reason for each in report.failures] == ["patch 7 of the expert has no length"]
    seal(job.store)
    cache = TeacherCache.open(job.store)
    with pytest.raises(TeacherCacheError, match=r"holds no data: .*patch 7"):
        cache[report.failures[0].path]
    assert cache.gram_errors is not None
    assert cache.gram_errors.rows == len(cache) - 1
    calls = itertools.count()
    store = job.store.with_name("strict")
    with pytest.raises(TeacherCacheError, match=rf"{report.failures[0].path}: patch 7"):
        job.build(store, max_gram_error=1e-2, workers=0, on_error="fail")
