from pathlib import Path

import pytest
from rich.console import Console

from medalign.cli import main
from medalign.demo.run import SAMPLE, run_demo
from medalign.demo.show import draw, table
from medalign.pipeline.manifest import read_manifest, resolve_image
from medalign.teacher_cache.origin import load_origin
from medalign.teacher_cache.reader import TeacherCache
from medalign.trainer.machine import quiet_libraries
from medalign.trainer.recipe.compose import find_recipe, shipped_recipes


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's recipe, two steps long."""
    quiet_libraries()
    recipe = tmp_path / "demo.yaml"
    recipe.write_text(shipped_recipes()["demo"].read_text().replace("steps: 60", "steps: 2"))
    short = find_recipe(str(recipe))
    monkeypatch.setattr("medalign.demo.run.find_recipe", lambda _name: short)


def test_every_sample_record_has_its_image_and_mask() -> None:
    train, test = (read_manifest(SAMPLE / f"{split}.jsonl") for split in ("train", "test"))
    for record in train + test:
        assert resolve_image(SAMPLE, record.images[0]).is_file()
        if mask := record.fields.get("mask"):
            assert resolve_image(SAMPLE, mask).is_file()
        licence = str(record.fields["licence"])
        assert licence.startswith(("CC-BY-3.0", "CC-BY-4.0", "CC0", "MIT"))
    assert not {r.images for r in train} & {r.images for r in test}
    patients = [{r.fields.get("patient") for r in split} - {None} for split in (train, test)]
    assert not patients[0] & patients[1]


@pytest.mark.usefixtures("short")
def test_the_demo_does_the_whole_job_and_the_second_run_reuses_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said: list[str] = []
    first = run_demo(out, said.append, lambda _step, _of: None)
    assert first.images == 24
    assert TeacherCache.open(out / "cache").certificate is not None
    origin = load_origin(out / "cache")
    assert origin is not None
    assert Path(origin.images) == out / "data"
    for path in SAMPLE.rglob("*"):
        copy = out / "data" / path.relative_to(SAMPLE)
        assert path.is_dir() or copy.read_bytes() == path.read_bytes()
    assert [run.name for run in first.trained] == ["plain LoRA", "MedAlign"]
    console = Console(record=True, width=100)
    console.print(table(first))
    for word in ("lm", "vis", "att", "mass in mask", "size", "time", "before", "expert"):
        assert word in console.export_text(clear=False)
    for figure in draw(first):
        assert figure.read_bytes().startswith(b"\x89PNG")
    before = (out / "runs" / "medalign" / "metrics.jsonl").read_bytes()
    again = run_demo(out, said.append, lambda _step, _of: pytest.fail("trained again"))
    assert (out / "runs" / "medalign" / "metrics.jsonl").read_bytes() == before
    assert [run.seconds for run in again.trained] == [0.0, 0.0]
    assert again.before.lm == first.before.lm
    assert any("reusing it" in line for line in said)


def test_the_demo_refuses_a_folder_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.jsonl").write_text("mine")
    monkeypatch.setattr("sys.argv", ["medalign", "demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "is not empty and holds no earlier demo" in capsys.readouterr().err
    assert (tmp_path / "manifest.jsonl").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
