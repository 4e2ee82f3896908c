import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medalign.pipeline.experts import Expert, demo_weights
from medalign.pipeline.recompute import (
    CertificateError,
    DriftError,
    Seen,
    base_tolerance,
    certifier,
    compare,
    recompute,
    refuse_drift,
)
from medalign.pipeline.resample import ExpertOutput
from medalign.pipeline.tower import Tower, TowerConfig
from medalign.pipeline.weights import ExpertError, weights_sha256
from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.certificate import Certificate
from medalign.teacher_cache.reader import TeacherCache, TeacherRow
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.writer import TeacherCacheWriter


def opened(job: Any) -> TeacherCache:
    return TeacherCache.open(job.store, allow_building=True)


def certified(job: Any, **options: Any) -> Certificate:
    return recompute(opened(job), job.root, job.expert, **options)


@pytest.fixture
def other_weights(tiny_expert: Expert) -> Expert:
    """The tiny tower with every weight shifted, and a card that tells."""
    config = TowerConfig(
        embed_dim=8,
        vision={"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
        quick_gelu=True,
    )
    tower = Tower(config, "tiny")
    weights = {n: w.roll(1, 0) for n, w in demo_weights(tower.module.state_dict()).items()}
    tower.load(weights, torch.device("cpu"), torch.float32)
    card = dataclasses.replace(tiny_expert.card, weights_sha256=weights_sha256(weights))
    return Expert(card, tower, config)


@pytest.mark.parametrize("geometry", ["pad", "crop", "stretch"])
def test_recomputed_rows_are_as_near_as_storing_allows(job: Any, geometry: str) -> None:
    job.build(geometry=geometry)
    found = certified(job)
    assert sorted(found.rows) == list(range(10))  # sixteen were asked for, ten are there
    # Only the rounding to float16 is between them: 2^-11 of a patch, 2^-10 of a cosine.
    assert found.deviation.cosine is not None
    assert 1 - 2**-23 <= found.deviation.cosine <= 1
    assert 0 < found.deviation.gram <= 2**-10
    assert found.deviation.attention_share < 1e-5
    assert found.outside() == []
    assert (found.device, found.dtype, found.skipped) == ("cpu", "float32", ())
    assert found.versions["torch"] == str(torch.__version__).partition("+")[0]
    assert found.date.endswith("+00:00")


def test_rows_are_drawn_by_the_seed_and_hold_data(job: Any) -> None:
    (job.root / "4.png").write_bytes(b"no image")
    job.build()
    first, again, other = (certified(job, rows=4, seed=seed) for seed in (1, 1, 2))
    assert (first.rows, len(set(first.rows))) == (again.rows, 4)
    assert first.rows != other.rows
    assert 4 not in certified(job, rows=10).rows
    assert len(certified(job, rows=10).rows) == 9


def test_the_seal_carries_the_certificate_and_it_reads_back(job: Any) -> None:
    job.build()
    seal(job.store, certify=certifier(job.root, job.expert, rows=3, seed=5))
    cache = TeacherCache.open(job.store)
    found = Certificate.from_json(cache.certificate)
    assert (len(found.rows), found.seed) == (3, 5)
    assert found.to_json() == cache.certificate
    assert verify(job.store) == []


def test_a_seal_with_a_certificate_has_the_same_content_as_one_without(
    job: Any, tmp_path: Path
) -> None:
    job.build()
    job.build(tmp_path / "other")
    one = seal(job.store, certify=certifier(job.root, job.expert))
    assert one.content_hash == seal(tmp_path / "other").content_hash
    assert TeacherCache.open(tmp_path / "other").certificate is None


def test_other_weights_are_refused_and_both_sides_are_named(
    job: Any, other_weights: Expert
) -> None:
    job.build()
    with pytest.raises(CertificateError) as error:
        seal(job.store, certify=certifier(job.root, other_weights))
    for side in (job.expert, other_weights):
        assert side.card.weights_sha256 in str(error.value)
    assert status(job.store).state == "building"


def test_weights_that_lie_about_their_digest_are_found_by_their_numbers(
    job: Any, other_weights: Expert
) -> None:
    job.build()
    other_weights.card = job.expert.card
    with pytest.raises(DriftError, match=r"row \d \(\d\.png\) is not what the expert gives"):
        seal(job.store, certify=certifier(job.root, other_weights))
    assert status(job.store).state == "building"


def test_a_renamed_expert_is_the_same_expert(job: Any, tiny_expert: Expert) -> None:
    job.build()
    renamed = Expert(
        dataclasses.replace(tiny_expert.card, name="elsewhere"),
        tiny_expert._tower,
        TowerConfig(embed_dim=8, vision={}, quick_gelu=True),
    )
    assert recompute(opened(job), job.root, renamed).outside() == []


def changed_reading(job: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> str:
    """Let images be read otherwise than when the cache was built; return what notices it."""
    pixels = np.random.default_rng(3).integers(0, 255, (40, 40, 4), np.uint8)
    Image.fromarray(pixels, "RGBA").save(job.root / "0.png")
    Image.new("L", (300, 60), 200).save(job.root / "1.png")
    job.build()
    squares = "medalign.pipeline.decode"
    if fault == "alpha":
        from medalign.pipeline.pixels import read_image

        monkeypatch.setattr(
            f"{squares}.read_image", lambda path, **_: read_image(path, alpha="white")
        )
        return "Gram error"
    if fault == "geometry":
        from medalign.pipeline.geometry import apply_geometry

        monkeypatch.setattr(
            f"{squares}.apply_geometry",
            lambda rgb, _geometry, size, fill: apply_geometry(rgb, "stretch", size, fill),
        )
        return "cosine"
    if fault == "valid":
        monkeypatch.setattr(f"{squares}.valid_patches", lambda *_: np.ones(36, np.bool_))
        return "patches changed between image and padding"
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *_, **__: resize(self, size, Image.Resampling.BOX)
    )
    return "cosine"


@pytest.mark.parametrize("fault", ["alpha", "geometry", "valid", "resize"])
def test_images_that_are_read_in_another_way_are_noticed(
    job: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    notices = changed_reading(job, monkeypatch, fault)
    found = certified(job)
    assert notices in "; ".join(found.outside())
    with pytest.raises(DriftError, match=rf"row {found.worst_row} \({found.worst_path}\)"):
        refuse_drift(opened(job), found)


def alter(job: Any, row: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Build the cache with one row changed before it is written: every digest fits."""
    write = TeacherCacheWriter.write

    def lying(self: TeacherCacheWriter, shard: int, **arrays: Any) -> None:
        span = self.rows_of(shard)
        if row in span:
            at = row - span.start
            views = {name: arrays[name][at] for name in ("features", "attention", "valid")}
            views["source_size"] = arrays["source_size"][at]
            change(views)
        write(self, shard, **arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherCacheWriter, "write", lying)
        job.build()
    assert verify(job.store) == []


def swap_patches(row: dict[str, Any]) -> None:
    row["features"][[7, 20]] = row["features"][[20, 7]]


def one_element(row: dict[str, Any]) -> None:
    row["features"][14, 3] += 0.05


def attention_of_one(row: dict[str, Any]) -> None:
    row["attention"][14] *= 1.5


def size(row: dict[str, Any]) -> None:
    row["source_size"] += 1


@pytest.mark.parametrize("change", [swap_patches, one_element, attention_of_one, size])
def test_an_altered_row_with_valid_checksums_is_named(
    job: Any, change: Callable[[dict[str, Any]], None]
) -> None:
    alter(job, 6, change)
    with pytest.raises(DriftError, match=r"row 6 \(6\.png\)"):
        seal(job.store, certify=certifier(job.root, job.expert))
    assert status(job.store).state == "building"


def test_missing_and_changed_images_are_listed_and_skipped(job: Any) -> None:
    job.build()
    (job.root / "2.png").unlink()
    Image.new("RGB", (30, 30)).save(job.root / "5.png")
    found = certified(job)
    assert {each.path: each.reason.split(": ")[0] for each in found.skipped} == {
        "2.png": "cannot be read",
        "5.png": "changed since the cache was planned",
    }
    assert set(found.rows) == set(range(10)) - {2, 5}


def test_any_path_of_a_content_will_do(job: Any) -> None:
    (job.root / "copy.png").write_bytes((job.root / "2.png").read_bytes())
    job.write_manifest([*job.paths, "copy.png"])
    job.build()
    (job.root / "2.png").unlink()
    found = certified(job)
    assert (found.skipped, set(found.rows)) == ((), set(range(10)))


def test_no_image_left_is_an_error_that_says_what_helps(job: Any, tmp_path: Path) -> None:
    job.build()
    with pytest.raises(CertificateError, match=r"none of the 10 images drawn .* --images DIR"):
        recompute(opened(job), tmp_path, job.expert)


def test_a_cache_without_any_data_cannot_be_certified(job: Any) -> None:
    for path in job.paths:
        (job.root / path).write_text(f"no image {path}")
    job.build()
    with pytest.raises(CertificateError, match="nothing to recompute"):
        certified(job)


def test_a_coarser_dtype_is_allowed_for_and_recorded(job: Any, tiny_expert: Expert) -> None:
    job.build()
    seal(job.store, certify=certifier(job.root, job.expert))
    narrow = narrowed(tiny_expert)
    found = recompute(TeacherCache.open(job.store), job.root, narrow)
    assert found.dtype == "bfloat16"
    # Rounding each of two layers to 8 bits turns patches by some thousandths.
    assert 1e-3 < found.deviation.gram < 0.08
    assert found.outside() == []
    recorded = Certificate.from_json(TeacherCache.open(job.store).certificate).tolerance
    assert found.deviation.outside(recorded) != []  # float32 would not have been allowed that


def narrowed(expert: Expert) -> Expert:
    config = TowerConfig(
        embed_dim=8,
        vision={"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
        quick_gelu=True,
    )
    tower = Tower(config, "tiny")
    weights = demo_weights(tower.module.state_dict())
    tower.load(weights, torch.device("cpu"), torch.bfloat16)
    return Expert(expert.card, tower, config)


def test_a_later_recomputation_goes_by_the_tolerance_of_the_certificate(job: Any) -> None:
    job.build()

    def strict(cache: TeacherCache) -> dict[str, Any]:
        found = recompute(cache, job.root, job.expert).to_json()
        return {**found, "tolerance": {"cosine": 1.0, "gram": 0.0, "attention": 0.0}}

    seal(job.store, certify=strict)
    found = recompute(TeacherCache.open(job.store), job.root, job.expert)
    assert (found.tolerance.cosine, found.tolerance.gram) == (1.0, 0.0)
    assert len(found.outside()) == 3


def test_tolerances_widen_with_the_coarsest_dtype(job: Any) -> None:
    job.build()
    card = opened(job).card
    assert base_tolerance(card, "float32") == base_tolerance(card)
    narrow = base_tolerance(card, "bfloat16")
    assert narrow == base_tolerance(dataclasses.replace(card, dtype="bfloat16"), "float32")
    assert narrow.gram > base_tolerance(card).gram > 2**-10
    assert narrow.cosine < base_tolerance(card).cosine < 1


def test_codec_gram_is_allowed_the_largest_error_it_measured_itself(job: Any) -> None:
    job.build(max_gram_error=0.05)
    cache = opened(job)
    assert cache.gram_errors is not None
    assert cache.gram_errors.largest > 0.02  # more than computing alone may be off
    found = recompute(cache, job.root, job.expert)
    assert found.outside() == []
    assert found.deviation.cosine is None
    assert found.tolerance.gram > cache.gram_errors.largest
    assert base_tolerance(cache.card).gram < cache.gram_errors.largest


def test_nan_from_the_expert_names_the_image(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job.build()
    encode = Expert.encode

    def broken(self: Expert, pixels: torch.Tensor) -> ExpertOutput:
        output = encode(self, pixels)
        output.patches[0, 3, 2] = float("nan")
        return output

    monkeypatch.setattr(Expert, "encode", broken)
    with pytest.raises(ExpertError, match=r"NaN or infinity for \d\.png"):
        certified(job)


def test_padding_does_not_count(job: Any) -> None:
    job.build()
    row = opened(job)["0.png"]
    stored = row.features.astype(np.float32)
    assert not row.valid.all()

    def judged(patch: int) -> Any:
        features = row.features.copy()
        features[patch] = features[(patch + 1) % len(features)]
        seen = dataclasses.replace(row, features=features)
        return compare(seen, _seen(row, stored))

    padding, image = int(np.argmin(row.valid)), int(np.argmax(row.valid))
    assert judged(padding).gram < 2**-10
    assert judged(image).gram > 0.01


def _seen(row: TeacherRow, patches: Any) -> Seen:
    return Seen(patches, row.attention, row.valid, row.source_size)
