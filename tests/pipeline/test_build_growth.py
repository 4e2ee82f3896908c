"""Building again with more, changed or restored images."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medalign.pipeline.decode import hash_files
from medalign.pipeline.pixels import PixelsError, read_image
from medalign.runtime.parts import Part
from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.storage.local import LocalStorage


def add_images(job: Any, *names: str) -> None:
    draw = np.random.default_rng(len(job.paths))
    for name in names:
        pixels = draw.integers(0, 256, size=(40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(job.root / name)
        job.paths.append(name)
    job.write_manifest(job.paths)


def check(job: Any) -> None:
    cache = TeacherCache.open(job.store)
    for path in job.paths:
        patches, attention = job.wanted(path)
        np.testing.assert_allclose(cache[path].features, patches, atol=2e-3)
        np.testing.assert_allclose(cache[path].attention, attention, atol=1e-6)


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the paths that are hashed from now on."""
    found: list[str] = []

    def spy(root: Path, paths: list[str]) -> Any:
        found.extend(paths)
        return hash_files(root, paths)

    monkeypatch.setattr("medalign.pipeline.planning.hash_files", spy)
    return found


def test_added_images_are_hashed_and_encoded_and_nothing_else_is(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.build()
    seal(job.store)
    before = {path: path.read_bytes() for path in (job.store / "features").glob("c.*")}
    add_images(job, "10.png", "11.png", "12.png")
    found = hashed(monkeypatch)
    report = job.build()
    assert found == ["10.png", "11.png", "12.png"]
    assert (report.rows, report.written, report.encoded, report.pending) == (13, 1, 3, 0)
    assert not report.sealed
    seal(job.store)
    check(job)
    assert {path: path.read_bytes() for path in before} == before


def test_parts_share_what_was_added(job: Any) -> None:
    job.build()
    seal(job.store)
    add_images(job, *(f"{number}.png" for number in range(10, 20)))
    written = [job.build(part=Part(index, 3)).written for index in (1, 2, 3)]
    assert sorted(written) == [1, 1, 1]
    seal(job.store)
    check(job)


def test_fewer_images_than_stored_are_no_work(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job.build()
    seal(job.store)
    job.write_manifest(job.paths[3:5])
    monkeypatch.setattr("medalign.pipeline.planning.hash_files", pytest.fail)
    report = job.build()
    assert (report.images, report.rows, report.written, report.sealed) == (2, 10, 0, True)


def test_a_whole_sealed_store_that_cannot_be_written_is_no_work_either(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.build()
    seal(job.store)

    def refuse(self: LocalStorage, name: str, *_: Any) -> Any:
        raise OSError(errno.EROFS, "read-only file system", f"{self}/{name}")

    for method in ("write", "publish", "delete"):
        monkeypatch.setattr(LocalStorage, method, refuse)
    report = job.build()
    assert (report.sealed, report.written) == (True, 0)
    add_images(job, "10.png")
    with pytest.raises(TeacherCacheError, match=r"failed while beginning .*read-only file system"):
        job.build()


def test_a_missing_image_that_was_restored_is_found_without_being_asked(job: Any) -> None:
    data = (job.root / "3.png").read_bytes()
    (job.root / "3.png").unlink()
    assert [failure.path for failure in job.build().failures] == ["3.png"]
    seal(job.store)
    (job.root / "3.png").write_bytes(data)
    report = job.build()
    assert (report.failures, report.written, report.rows) == ((), 1, 10)
    seal(job.store)
    check(job)


def test_a_broken_image_that_was_mended_is_found_without_being_asked(job: Any) -> None:
    data = (job.root / "3.png").read_bytes()
    (job.root / "3.png").write_bytes(data[:99])
    assert [failure.path for failure in job.build().failures] == ["3.png"]
    (job.root / "3.png").write_bytes(data)
    assert job.build().failures == ()
    seal(job.store)
    check(job)


def test_a_changed_image_is_found_when_asked_to_hash_again(job: Any) -> None:
    job.build()
    seal(job.store)
    Image.new("RGB", (30, 50), "teal").save(job.root / "5.png")
    assert job.build().sealed  # nobody looked
    report = job.build(rehash=True)
    assert (report.rows, report.written, report.failures) == (11, 1, ())
    seal(job.store)
    check(job)
    assert TeacherCache.open(job.store).row_of("5.png") == 12


def test_an_image_that_is_gone_keeps_its_row_when_all_are_hashed_again(job: Any) -> None:
    job.build()
    seal(job.store)
    (job.root / "5.png").unlink()
    report = job.build(rehash=True)
    assert (report.sealed, report.failures) == (True, ())
    with pytest.raises(PixelsError, match=r"5\.png"):
        job.build(rehash=True, on_error="fail")


def break_decoder(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def broken(path: Path, **options: Any) -> Any:
        if path.name in names:
            raise PixelsError(path.name, "no decoder is installed")
        return read_image(path, **options)

    monkeypatch.setattr("medalign.pipeline.decode.read_image", broken)


def test_rows_that_failed_for_lack_of_a_decoder_are_retried_and_the_others_keep_their_bytes(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_decoder(monkeypatch, "2.png", "5.png", "6.png")
    job.build()
    seal(job.store)
    old = TeacherCache.open(job.store)
    kept = {path: old[path] for path in job.paths if path not in ("2.png", "5.png", "6.png")}
    first = {path: path.read_bytes() for path in job.store.glob("*/c.2.*")}
    break_decoder(monkeypatch, "6.png")
    (job.root / "4.png").unlink()  # its row is there, and must survive
    assert job.build().sealed
    report = job.build(retry=True)
    assert (report.encoded, report.written, report.sealed) == (2, 2, False)
    assert [failure.path for failure in report.failures] == ["6.png"]
    assert status(job.store).state == "building"
    seal(job.store)
    assert verify(job.store) == []
    cache = TeacherCache.open(job.store)
    for path, row in kept.items():
        assert cache[path].features.tobytes() == row.features.tobytes()
    for path in ("2.png", "5.png"):
        np.testing.assert_allclose(cache[path].features, job.wanted(path)[0], atol=2e-3)
    assert {path: path.read_bytes() for path in first} == first


def test_a_retry_that_helps_nothing_leaves_the_store_sealed(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_decoder(monkeypatch, "2.png")
    job.build()
    seal(job.store)
    report = job.build(retry=True)
    assert (report.written, report.encoded, report.sealed) == (0, 0, True)


def test_a_row_whose_image_no_path_leads_to_is_not_rebuilt_but_told(job: Any) -> None:
    job.build()
    Image.new("RGB", (30, 50), "teal").save(job.root / "5.png")
    job.build(rehash=True)
    (job.store / "_commit" / "1.json").unlink()  # as if its shard was damaged
    assert job.build().pending == 0
    seal(job.store)
    check(job)
    record = json.loads((job.store / "_commit" / "1.json").read_bytes())
    assert record["failures"] == {"5": "no path leads to this image any more"}
