import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from medalign.cli import main
from medalign.pipeline.commands.cache import cache
from medalign.pipeline.recompute import CertificateError, DriftError
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.writer import TeacherCacheWriter


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cache, [str(word) for word in words])


@pytest.fixture
def store(folder: Path) -> Path:
    """A finished build that is not sealed."""
    assert run(*build_words(folder)).exit_code == 0
    return folder / "store"


def build_words(folder: Path, *more: str) -> list[str]:
    needed = ["--images", str(folder / "images"), "--out", str(folder / "store")]
    quick = ["--workers", "0", "--shard-rows", "4", "--batch-size", "4", "--expert", "demo"]
    return ["build", str(folder / "manifest.jsonl"), *needed, *quick, *more]


def state(store: Path) -> str:
    return str(json.loads(run("status", store, "--json").stdout)["state"])


def test_sealing_recomputes_rows_and_every_command_shows_it(store: Path) -> None:
    sealed = run("seal", store, "--recompute", "3", "--seed", "9")
    assert sealed.exit_code == 0, sealed.output
    assert "certificate  3 rows recomputed" in sealed.stdout
    found = json.loads(run("info", store, "--json").stdout)["certificate"]
    assert (len(found["rows"]), found["seed"], found["device"]) == (3, 9, "cpu")
    assert found["dtype"] == "float32"
    for text in (sealed.stdout, run("info", store).stdout, run("seal", store).stdout):
        assert "seed 9" in text
        assert "cosine at least 0.99999" in text
        assert "limit 0.9999" in text
        assert found["worst_path"] in text


def test_sealing_without_a_certificate_says_so(folder: Path, store: Path) -> None:
    (folder / "images").rename(folder / "elsewhere")
    assert run("seal", store, "--recompute", "0").exit_code == 0
    assert "none: no rows were recomputed" in run("info", store).stdout
    assert json.loads(run("info", store, "--json").stdout)["certificate"] is None


def test_images_that_are_not_there_keep_the_cache_unsealed_until_they_are_given(
    folder: Path, store: Path
) -> None:
    (folder / "images").rename(folder / "elsewhere")
    result = run("seal", store)
    assert isinstance(result.exception, CertificateError)
    for option in ("--images DIR", "--weights PATH", "--expert NAME", "--recompute 0"):
        assert option in str(result.exception)
    assert "\n" not in str(result.exception)
    assert state(store) == "building"
    assert run("seal", store, "--images", folder / "elsewhere").exit_code == 0


def test_weights_that_are_not_there_are_named_with_the_way_out(
    folder: Path, small_folder: Path
) -> None:
    words = build_words(folder)
    words[words.index("demo")] = str(small_folder)
    assert run(*words, "--grid", "4x4").exit_code == 0
    store, moved = folder / "store", folder / "moved"
    small_folder.rename(moved)
    result = run("seal", store)
    assert isinstance(result.exception, CertificateError)
    assert str(small_folder) in str(result.exception)
    assert state(store) == "building"
    assert run("seal", store, "--expert", moved).exit_code == 0


def test_a_store_without_an_origin_asks_for_the_images(folder: Path, store: Path) -> None:
    (store / "_commit" / "origin.json").unlink()
    result = run("seal", store)
    assert isinstance(result.exception, CertificateError)
    assert "does not say where its images are" in str(result.exception)
    assert run("seal", store, "--images", folder / "images").exit_code == 0  # the card names demo


def test_pending_shards_are_told_before_an_expert_is_looked_for(folder: Path, store: Path) -> None:
    (folder / "images").rename(folder / "elsewhere")
    (store / "_commit" / "1.json").unlink()
    result = run("seal", store)
    assert isinstance(result.exception, TeacherCacheError)
    assert "2 of 3 shards are complete" in str(result.exception)


def test_verify_can_recompute_other_rows_than_the_seal(store: Path) -> None:
    run("seal", store, "--recompute", "2")
    result = run("verify", store, "--recompute", "4", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert "recomputed  4 rows recomputed" in result.stdout
    answer = json.loads(run("verify", store, "--recompute", "4", "--json").stdout)
    assert (answer["damages"], answer["outside"]) == ([], [])
    assert len(answer["recomputed"]["rows"]) == 4
    narrow = run("verify", store, "--recompute", "2", "--dtype", "bf16")
    assert narrow.exit_code == 0, narrow.output
    assert "in bfloat16 on cpu" in narrow.stdout


@pytest.fixture
def altered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished build whose row 6 is not what the expert said; every digest fits."""
    write = TeacherCacheWriter.write

    def lying(self: TeacherCacheWriter, shard: int, **arrays: Any) -> None:
        if shard == 1:
            np.asarray(arrays["features"])[2] = np.asarray(arrays["features"])[1]
        write(self, shard, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCacheWriter, "write", lying)
        run(*build_words(folder))
    return folder / "store"


def test_rows_that_are_not_the_experts_are_not_sealed_and_fail_verify(altered: Path) -> None:
    sealed = run("seal", altered)
    assert isinstance(sealed.exception, DriftError)
    assert "row 6 (6.png)" in str(sealed.exception)
    assert state(altered) == "building"
    assert run("seal", altered, "--recompute", "0").exit_code == 0
    assert run("verify", altered).exit_code == 0  # the bytes are those that were written
    result = run("verify", altered, "--recompute", "16")
    assert result.exit_code == 1
    assert "outside the tolerance, row 6 (6.png): cosine" in result.stdout
    answer = json.loads(run("verify", altered, "--recompute", "16", "--json").stdout)
    assert answer["outside"][0].startswith("cosine ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [((), 1, "row 6 (6.png) is not what"), (("--images", "/nowhere"), 2, "no such folder")],
)
def test_drift_is_a_failed_check_and_missing_images_are_wrong_input(
    altered: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["medalign", "cache", "seal", str(altered), *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("medalign: ")
    assert said in error


def test_damage_is_told_without_recomputing(store: Path) -> None:
    run("seal", store, "--recompute", "0")
    os.truncate(store / "features" / "c.0.0.0", 100)
    result = run("verify", store, "--recompute", "4")
    assert result.exit_code == 1
    assert "recomputed" not in result.stdout
    assert json.loads(run("verify", store, "--json").stdout)["recomputed"] is None


def test_mending_names_the_shards_and_the_commands(store: Path) -> None:
    run("seal", store, "--recompute", "0")
    (store / "features" / "c.0.0.0").unlink()
    result = run("verify", store, "--mend")
    assert result.exit_code == 1
    said = result.stderr.splitlines()
    assert said[0] == "1 shard pending again: 0"
    assert said[1].startswith("next  medalign cache build ")
    assert said[2] == f"next  medalign cache seal {store}"


def test_a_store_that_cannot_be_written_can_still_be_verified(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, _data: bytes) -> None:
        raise PermissionError(13, "read-only", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("medalign.teacher_cache.storage.local.write_durably", read_only)
        result = run("seal", store, "--recompute", "2")
        assert isinstance(result.exception, TeacherCacheError)
        assert "read-only" in str(result.exception)
    assert state(store) == "building"
    run("seal", store, "--recompute", "2")
    monkeypatch.setattr("medalign.teacher_cache.storage.local.write_durably", read_only)
    assert run("verify", store, "--recompute", "2").exit_code == 0
    assert TeacherCache.open(store).certificate is not None


def test_a_growing_cache_is_certified_anew_with_the_images_that_were_added(
    folder: Path, store: Path
) -> None:
    assert run("seal", store, "--recompute", "2").exit_code == 0
    pixels = np.full((20, 20, 3), 7, np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "new.png")
    manifest = folder / "manifest.jsonl"
    added = json.loads(manifest.read_text().splitlines()[0]) | {"id": "new", "image": "new.png"}
    manifest.write_text(f"{manifest.read_text()}\n{json.dumps(added)}")
    assert run(*build_words(folder)).exit_code == 0
    lines = run("status", store).stdout.splitlines()
    assert "sealed and growing" in lines[1]
    assert lines[-1].endswith(f"medalign cache seal {store}")
    assert run("seal", store).exit_code == 0
    found = json.loads(run("info", store, "--json").stdout)["certificate"]
    assert len(found["rows"]) == 11
    assert TeacherCache.open(store).row_of("new.png") in found["rows"]
