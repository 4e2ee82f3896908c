from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medalign.pipeline.build_options import BuildOptions
from medalign.pipeline.manifest import ManifestError
from medalign.pipeline.planning import BuildError
from medalign.teacher_cache.schema import PatchGrid, TeacherCacheError


def test_another_order_of_the_same_images_is_the_same_cache(job: Any) -> None:
    job.build()
    job.write_manifest(job.paths[::-1])
    assert job.build().written == 0


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"geometry": "crop"}, "geometry is 'pad' in the store, 'crop' asked for"),
        ({"mode": "paper"}, "mode is 'aligned' in the store, 'paper' asked for"),
        ({"grid": PatchGrid(4, 4)}, "grid is '6x6' in the store, '4x4' asked for"),
    ],
)
def test_a_store_begun_differently_is_refused(
    job: Any, options: dict[str, Any], difference: str
) -> None:
    job.build()
    with pytest.raises(TeacherCacheError, match=difference):
        job.build(**options)


def test_a_store_of_another_expert_is_refused(job: Any) -> None:
    job.build()
    other = copy(job.expert)
    other.card = replace(job.expert.card, weights_sha256="0" * 64)
    job.expert = other
    with pytest.raises(TeacherCacheError, match=r"expert\.weights_sha256 is .* in the store"):
        job.build()


def test_folders_that_cannot_be_used_are_refused(job: Any, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("x")
    with pytest.raises(TeacherCacheError, match=r"not a teacher cache \(it holds 'thesis\.tex'\)"):
        job.build(strange)
    with pytest.raises(TeacherCacheError, match="is a file"):
        job.build(strange / "thesis.tex")
    job.root = tmp_path / "nowhere"
    with pytest.raises(BuildError, match="nowhere: no such image folder"):
        job.build()
    job.root = strange
    with pytest.raises(
        BuildError, match=r"none of the 10 images can be read .*is --images the .* to\?"
    ):
        job.build()
    job.write_manifest([], text_only=3)
    with pytest.raises(ManifestError, match="none of its 3 records has an image"):
        job.build()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"shard_rows": 0}, {"workers": -1}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BuildError, match=f"{next(iter(options))} takes a number from"):
        BuildOptions(**options)
