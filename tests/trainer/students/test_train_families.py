"""Two steps of every new family against a cache, saved, resumed and measured."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medalign.eval.alignment import measure
from medalign.eval.decoders.settings import Greedy
from medalign.eval.generate import generate
from medalign.eval.source import find_source
from medalign.pipeline.manifest import read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.trainer.data.dataset import Conversations
from medalign.trainer.loop import Step
from medalign.trainer.prepared import AgreementError, with_paths
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.student import load_base, load_student
from medalign.trainer.students.spec import StudentError, read_student
from medalign.trainer.train import train

Make = Callable[..., tuple[Path, Path, Path]]
Folder = Callable[[str], Path]


@pytest.mark.parametrize(
    ("family", "grid", "geometry"), [("gemma3", "4x4", "stretch"), ("qwen2_5_vl", "6x6", "pad")]
)
def test_a_run_trains_saves_measures_and_answers(
    family: str,
    grid: str,
    geometry: str,
    conversations: Make,
    family_folder: Folder,
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    manifest, images, store = conversations(grid=grid, geometry=geometry)
    steps: list[Step] = []
    said: list[str] = []
    chosen = with_paths(
        recipe(**{"run.steps": 2, "run.save_every": 1, "optim.warmup_ratio": 0.0}),
        student=family_folder(family),
        manifest=manifest,
        images=images,
    )
    result = train(
        chosen,
        store,
        tmp_path / "run",
        say=said.append,
        report=lambda step, _of: steps.append(step),
    )
    assert [step.step for step in steps] == [1, 2]
    assert not result.skipped
    assert all(step.vis and step.att and step.lm > 0 for step in steps)
    spec = read_student(family_folder(family))
    assert any(str(spec.sight) in line for line in said)
    adapter = tmp_path / "run" / "adapter"
    saved = load_file(adapter / "adapter_model.safetensors")
    assert any("visual_rotation" in name and value.any() for name, value in saved.items())
    assert any(spec.family.projector_name in name for name in saved)
    student = load_student(load_base(family_folder(family), torch.float32), adapter, probe=True)
    records = read_manifest(manifest)
    cache = TeacherCache.open(store)
    measured = measure(student, spec, records, images, cache, chosen.loss, batch_size=3)
    assert measured.vis > 0
    assert measured.att > 0
    asked = [record for record in records if record.images]
    assert set(measured.attention) == {record.id for record in asked}
    one = measure(student, spec, asked[:1], images, cache, chosen.loss)
    name = asked[0].id
    assert measured.attention[name].shape == one.attention[name].shape
    assert measured.attention[name] == pytest.approx(one.attention[name], rel=1e-3)
    answers = tmp_path / "answers.jsonl"
    source = find_source(tmp_path / "run")
    answered = generate(source, manifest, images, answers, Greedy(max_new_tokens=3), batch_size=3)
    assert (answered.answered, answered.unreadable) == (len(records), ())


def test_a_family_with_a_fixed_grid_wants_a_cache_of_that_grid(
    conversations: Make, family_folder: Folder, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    manifest, images, store = conversations(grid="6x6", geometry="pad")
    chosen = with_paths(recipe(), student=family_folder("gemma3"), manifest=manifest, images=images)
    with pytest.raises(AgreementError, match=r"6x6 patches.*4x4.*geometry 'pad'.*'stretch'"):
        train(chosen, store, tmp_path / "run", say=print, report=lambda _s, _n: None)


def test_flash_attention_is_refused_where_it_would_drop_the_mask(family_folder: Folder) -> None:
    with pytest.raises(StudentError, match=r"gemma3 student runs with student\.attention sdpa"):
        load_base(family_folder("gemma3"), torch.float32, "flash_attention_2")


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_another_geometry_than_the_processors_is_refused(
    family: str, family_folder: Folder
) -> None:
    with pytest.raises(StudentError, match=r"student\.geometry cannot be 'pad'"):
        read_student(family_folder(family), "pad")


def test_an_image_as_thin_as_a_thread_is_skipped_by_name(
    dataset: Make, family_folder: Folder
) -> None:

    manifest, images, _ = dataset(images=1, records=1)
    Image.new("RGB", (300, 1)).save(images / "0.png")
    spec = read_student(family_folder("qwen2_5_vl"))
    sample = Conversations(read_manifest(manifest), images, spec, 512, None)[0]
    assert sample.skipped == (
        "0.png: 1x300 pixels: this student takes images whose longer side is at most 200 times "
        "the shorter"
    )
    with pytest.raises(StudentError, match="no fixed square: up to 20 visual tokens"):
        _ = spec.grid
