import hashlib
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from medalign.pipeline.experts import Expert
from medalign.pipeline.geometry import valid_patches
from medalign.pipeline.resample import ExpertOutput
from medalign.runtime.parts import Part
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import PatchGrid
from medalign.teacher_cache.seal import seal

GRID = PatchGrid(6, 6)
FILL = (122, 116, 104)


def files_of(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def test_a_cache_holds_what_the_expert_says_of_each_image(job: Any) -> None:
    report = job.build()
    seal(job.store)
    cache = TeacherCache.open(job.store)
    assert (report.images, report.rows, report.shards, report.written) == (10, 10, 3, 3)
    assert (report.pending, report.failures, report.encoded) == (0, (), 10)
    assert cache.paths == job.paths
    for path in job.paths:
        row, (patches, attention) = cache[path], job.wanted(path)
        np.testing.assert_allclose(row.features, patches, atol=2e-3)  # float16
        np.testing.assert_allclose(row.attention, attention, atol=1e-6)
        with Image.open(job.root / path) as image:
            width, height = image.size
        assert row.source_size == (height, width)
        np.testing.assert_array_equal(row.valid, valid_patches("pad", height, width, GRID))
        assert cache.sha256_of(cache.row_of(path)) == (
            hashlib.sha256((job.root / path).read_bytes()).hexdigest()
        )


def test_the_card_says_how_the_cache_was_made(job: Any) -> None:
    job.build(geometry="stretch", alpha="white")
    card = TeacherCache.open(job.store, allow_building=True).card
    assert card.expert == job.expert.card
    assert (card.geometry, card.mode, card.alpha, card.fill) == (
        "stretch",
        "aligned",
        "white",
        FILL,
    )
    assert (card.grid, card.dtype, card.shard_rows) == (GRID, "float32", 4)
    assert card.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_paper_mode_crops_the_expert_and_counts_every_patch(job: Any) -> None:
    job.build(mode="paper")
    cache = TeacherCache.open(job.store, allow_building=True)
    assert (cache.card.geometry, cache.card.mode) == ("crop", "paper")
    for path in job.paths:
        row, (patches, _) = cache[path], job.wanted(path, "crop")
        np.testing.assert_allclose(row.features, patches, atol=2e-3)
        assert row.valid.all()


def test_equal_content_shares_a_row_and_text_needs_none(job: Any) -> None:
    (job.root / "copy.png").write_bytes((job.root / "1.png").read_bytes())
    job.write_manifest(["3.png", "copy.png", "1.png", "3.png"], text_only=2)
    report = job.build()
    cache = TeacherCache.open(job.store, allow_building=True)
    assert (report.records, report.text_only, report.images, report.rows) == (6, 2, 3, 2)
    assert [cache.row_of(path) for path in ("3.png", "copy.png", "1.png")] == [0, 1, 1]


def test_worker_processes_give_the_same_bytes(job: Any, tmp_path: Path) -> None:
    job.build()
    job.build(tmp_path / "by-workers", workers=2)
    assert files_of(tmp_path / "by-workers") == files_of(job.store)


def test_a_second_run_reads_no_image(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job.build()
    before = files_of(job.store)
    monkeypatch.setattr("medalign.pipeline.build.read_squares", pytest.fail)
    monkeypatch.setattr(Expert, "encode", None)
    for sealed in (False, True):
        report = job.build()
        assert (report.written, report.encoded, report.pending) == (0, 0, 0)
        assert report.sealed is sealed
        assert sealed or files_of(job.store) == before
        seal(job.store)


def test_parts_make_the_whole(job: Any, tmp_path: Path) -> None:
    job.build(tmp_path / "whole")
    first = job.build(part=Part(1, 2))
    assert (first.written, first.pending) == (2, 1)  # shards 0 and 2 of 3
    second = job.build(part=Part(2, 2))
    assert (second.written, second.pending) == (1, 0)
    assert files_of(job.store) == files_of(tmp_path / "whole")


class Brightness:
    """A tower whose attention to a patch is how bright it is."""

    def run(self, pixels: torch.Tensor, *, normalised: bool) -> ExpertOutput:
        assert not normalised
        brightness = F.avg_pool2d(pixels.mean(1, keepdim=True), 8).flatten(1)
        return ExpertOutput(torch.ones(len(pixels), 16, 16), brightness - brightness.min())


def test_a_bright_square_lights_the_same_patches_in_the_cache(job: Any) -> None:
    """A black image of 60 x 30 with one white block, on a student's grid of 4 x 4."""
    job.expert = copy(job.expert)
    job.expert._tower = Brightness()
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[0:15, 45:60] = 255  # upper right: after padding to 60 x 60, rows 15..30
    Image.fromarray(pixels).save(job.root / "bright.png")
    job.write_manifest(["bright.png"])
    job.build(grid=PatchGrid(4, 4))
    row = TeacherCache.open(job.store, allow_building=True)["bright.png"]
    assert int(row.attention.argmax()) == 1 * 4 + 3
    assert row.valid.reshape(4, 4).all(axis=1).tolist() == [False, True, True, False]
