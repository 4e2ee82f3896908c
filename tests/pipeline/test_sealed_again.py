"""`medalign cache` on a store that is sealed already: damage, certificates, exit codes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from medalign.cli import main
from medalign.pipeline.commands.cache import cache
from medalign.pipeline.recompute import CertificateError
from medalign.teacher_cache.copy import subset
from medalign.teacher_cache.damage import DamageFoundError
from medalign.teacher_cache.origin import load_origin, save_origin
from medalign.teacher_cache.reader import TeacherCache

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cache, [str(word) for word in words])


def build_words(source: Path, store: Path, *more: str) -> list[str | Path]:
    needed = (source / "manifest.jsonl", "--images", source / "images", "--out", store)
    quick = ("--expert", "demo", "--grid", "4x4", "--workers", "0", "--shard-rows", "2")
    return ["build", *needed, *quick, *more]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, their manifest, and a store of them that is sealed without a certificate."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "images").mkdir()
    lines: list[str] = []
    for name in ("a.png", "b.png", "c.png"):
        pixels = np.full((20, 30, 3), len(lines) * 40, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        lines.append(json.dumps({"id": name, "image": name, "conversations": TURNS}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    assert run(*build_words(folder, folder / "store")).exit_code == 0
    result = run("seal", folder / "store", "--recompute", "0")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def store(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source / "store", tmp_path / "store")
    return tmp_path / "store"


def test_sealing_again_gives_the_certificate_that_is_missing_and_keeps_it(store: Path) -> None:
    content = TeacherCache.open(store).content_hash
    assert "was sealed before; nothing is missing" in run("seal", store, "--recompute", "0").stdout
    result = run("seal", store, "--recompute", "2")
    assert result.exit_code == 0, result.output
    assert "was sealed before, certified now" in result.stdout
    assert "rows         3 in 2 shards" in result.stdout
    certificate = TeacherCache.open(store).certificate
    for words in (("--recompute", "0"), ()):
        assert "2 rows recomputed" in run("seal", store, *words).stdout
    after = TeacherCache.open(store)
    assert (after.certificate, after.content_hash) == (certificate, content)


def test_a_cut_store_is_certified_where_its_images_are_given(
    source: Path, store: Path, tmp_path: Path
) -> None:
    subset(store, ["a.png"], tmp_path / "cut")
    by_default = run("seal", tmp_path / "cut")
    assert by_default.exit_code == 0, by_default.output
    assert "no certificate: " in by_default.stderr
    assert "does not say where its images are" in by_default.stderr
    elsewhere = ("seal", tmp_path / "cut", "--images", tmp_path)
    for words in (("seal", tmp_path / "cut", "--recompute", "1"), elsewhere):
        assert isinstance(run(*words).exception, CertificateError)
    result = run("seal", tmp_path / "cut", "--images", source / "images")
    assert result.exit_code == 0, result.output
    assert "1 row recomputed" in result.stdout
    assert "1 in 1 shard\n" in result.stdout


def test_a_sealed_store_whose_images_are_gone_stays_sealed(source: Path, store: Path) -> None:
    origin = load_origin(store)
    assert origin is not None
    save_origin(store, replace(origin, images=str(source / "store")))  # a folder without them
    result = run("seal", store)
    assert result.exit_code == 0, result.output
    assert "no certificate: " in result.stderr
    assert "none of the 3 images drawn is there" in result.stderr
    assert "was sealed before; nothing is missing" in result.stdout


def test_a_damaged_index_is_shown_by_status_and_build_and_refused_by_seal(
    source: Path, store: Path
) -> None:
    (store / "index/1/content/c.0.0").unlink()
    shown = run("status", store)
    assert shown.exit_code == 0
    assert f"damage  index: {store}/index/1/content/c.0.0 is missing" in shown.stdout
    mend = f"medalign cache verify {store} --mend"
    assert f"next    {mend}\nthen    medalign cache seal {store}" in shown.stdout
    built = run(*build_words(source, store))
    assert built.exit_code == 1
    assert "content/c.0.0 is missing" in built.stdout
    assert f"`{mend}`" in built.stdout
    assert "nothing; the cache is sealed" not in built.stdout
    assert isinstance(run("seal", store).exception, DamageFoundError)


def said_by_verify(store: Path, *more: str) -> list[str]:
    result = run("verify", store, *more)
    assert result.exit_code == 1
    return (result.stderr if more else result.stdout).splitlines()


def test_verify_gives_advice_that_fits_the_damage(store: Path) -> None:
    index = store / "index/1/content/c.0.0"
    kept = index.read_bytes()
    index.unlink()
    found, count, advice = said_by_verify(store)
    assert (found, count) == (f"index: {index} is missing", "1 damaged")
    assert advice.startswith(f"`medalign cache verify {store} --mend` unseals it")
    index.write_bytes(kept)
    plan = store / "_commit" / "plan.0.json"
    plan.rename(store / "kept")
    for more in ((), ("--mend",)):
        *_, advice = said_by_verify(store, *more)
        assert advice.startswith("restore _commit/plan.0.json from a copy")
    assert said_by_verify(store)[0].startswith("_commit/plan.0.json: is missing; ")
    status = run("status", store).stdout
    assert "\nfirst   restore _commit/plan.0.json from a copy" in status
    (store / "kept").rename(plan)
    (store / "valid" / "zarr.json").unlink()
    found, _, advice = said_by_verify(store)
    assert found == "valid/zarr.json: is missing"
    assert advice.startswith("`medalign cache build ")
    assert advice.endswith(" writes it again")


def test_mending_says_that_the_certificate_is_gone(store: Path) -> None:
    assert run("seal", store, "--recompute", "1").exit_code == 0
    (store / "valid" / "c.0.0").unlink()
    said = said_by_verify(store, "--mend")
    assert said[0] == "1 shard pending again: 0"
    assert said[1] == "the certificate is gone with the seal; the next seal recomputes rows"


@pytest.mark.parametrize(
    ("command", "file", "code"),
    [("seal", "features/c.1.0.0", 1), ("verify", "zarr.json", 1), ("seal", None, 2)],
)
def test_damage_exits_1_and_wrong_input_2(
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    file: str | None,
    code: int,
) -> None:
    if file:
        (store / file).write_bytes(b"{}")
    words = ["medalign", "cache", command, str(store if file else store / "nowhere")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("medalign: ")


def test_an_unreadable_image_with_on_error_fail_exits_1(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(source / "images", tmp_path / "images")
    shutil.copy(source / "manifest.jsonl", tmp_path)
    (tmp_path / "images" / "b.png").write_bytes(b"nothing")
    words = build_words(tmp_path, tmp_path / "store", "--on-error", "fail")
    monkeypatch.setattr("sys.argv", ["medalign", "cache", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "medalign: b.png: is not an image" in capsys.readouterr().err
