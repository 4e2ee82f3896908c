import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medalign.cli import app
from medalign.trainer.export import export as job
from medalign.trainer.export import merge
from medalign.trainer.export.export import Wish, export
from medalign.trainer.export.modeling_medalign_llava import MedAlignLlavaForConditionalGeneration
from medalign.trainer.export.origin import ExportError, find_origin
from medalign.trainer.export.processor import read_processor
from medalign.trainer.recipe import RecipeError

FAST = Wish(images_checked=0)


def quiet(_text: str) -> None:
    pass


@pytest.fixture
def student(students: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(students(), tmp_path / "student"))


@pytest.fixture
def run(student: Path, make_run: Callable[..., Path], tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", student)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_command_writes_a_folder_and_says_how_to_load_it(run: Path, out: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(out), "--images-checked", "1"])
    assert done.exit_code == 0, done.output
    assert f"export   {out}: load it with trust_remote_code=True" in done.output
    assert names(out) == [
        "README.md", "chat_template.jinja", "config.json", "export.json", "generation_config.json",
        "model.safetensors", "modeling_medalign_llava.py", "processor_config.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_the_record_names_what_it_was_made_of_and_every_file(run: Path, out: Path) -> None:
    export(run, out, FAST, quiet)
    kept = json.loads((out / "export.json").read_text())
    assert kept["rotated_layer"] == 2
    assert (kept["step"], kept["finished"]) == (4, True)
    assert kept["cache"] == "f" * 64
    assert set(kept["versions"]) == {"medalign", "torch", "transformers", "peft", "safetensors"}
    assert sorted([*kept["files"], "export.json"]) == names(out)
    for name, facts in kept["files"].items():
        data = (out / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_card_names_data_expert_and_licences_but_no_path(
    run: Path, student: Path, out: Path, data: tuple[Path, Path]
) -> None:
    (student / "README.md").write_text("---\nlicense: llama2\n---\n# A student\n")
    export(run, out, FAST, quiet)
    card = (out / "README.md").read_text()
    for text in (
        "license: llama2", "decoder layer 2", "`train.jsonl`, 5 conversations", "`unimed-l`, 4",
        f"fingerprint `{'f' * 64}`", "expert `unimed-l`: CC-BY-NC-4.0", "4 conversations: CC0",
        "student `student`: llama2", "lm 0.5, vis 0.25", "Not checked", "rank: 4",
    ):  # fmt: skip
        assert text in card
    for folder in (run, student, data[1]):
        assert str(folder) not in card
        assert str(folder) not in (out / "export.json").read_text()


def test_equal_exports_are_equal_byte_for_byte(run: Path, out: Path, tmp_path: Path) -> None:
    export(run, out, FAST, quiet)
    again = tmp_path / "other" / "out"
    export(run, again, FAST, quiet)
    for name in names(out):
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_large_weights_are_cut_into_files_that_load_as_one(
    run: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SHARD_BYTES", 300_000)
    export(run, out, Wish(images_checked=1), quiet)
    shards = sorted(path.name for path in out.glob("model-*.safetensors"))
    assert len(shards) > 3
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] > 1_000_000


def test_a_rotation_of_zero_leaves_a_plain_llava_folder(
    run: Path, out: Path, student: Path
) -> None:
    path = run / "adapter" / "adapter_model.safetensors"
    tensors = {k: t * 0 if "visual_rot" in k else t for k, t in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    done = export(run, out, Wish(images_checked=1), quiet)
    assert done.layer is None
    assert json.loads((out / "config.json").read_text())["model_type"] == "llava"
    assert set(load_file(out / "model.safetensors")) == set(
        load_file(student / "model.safetensors")
    )


def test_what_lora_did_not_touch_is_the_students_bit_for_bit(
    run: Path, out: Path, student: Path
) -> None:
    export(run, out, FAST, quiet)
    before, after = load_file(student / "model.safetensors"), load_file(out / "model.safetensors")
    kept = [name for name in before if torch.equal(before[name], after[name])]
    assert all("multi_modal_projector" in n or ".layers." in n for n in set(before) - set(kept))
    assert len(before) - len(kept) == 4 * 7 + 4  # LoRA's linear layers, and the projector


@pytest.mark.parametrize("geometry", ["processor", "pad", "crop", "stretch"])
def test_the_exported_processor_gives_the_pixels_of_the_training_bit_for_bit(
    geometry: str, student: Path, make_run: Callable[..., Path], tmp_path: Path, out: Path
) -> None:
    if geometry == "pad":  # the student's own processor pads; now it crops
        path = student / "processor_config.json"
        path.write_text(path.read_text().replace('"do_pad": true', '"do_pad": false'))
    run = make_run(tmp_path / "run", student, student={"geometry": geometry})
    done = export(run, out, Wish(images_checked=4), quiet)
    assert [one.pixels for one in done.checked] == [0.0] * 4
    settings = json.loads((out / "processor_config.json").read_text())["image_processor"]
    assert bool(settings.get("do_pad")) == (geometry in ("processor", "pad"))


def test_a_student_without_a_padding_token_gets_one_and_sampling_settings_are_mended(
    run: Path, student: Path, out: Path
) -> None:
    tokenizer = json.loads((student / "tokenizer_config.json").read_text())
    del tokenizer["pad_token"]
    (student / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    path = student / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.9, "top_p": 0.6}))
    export(run, out, Wish(images_checked=1), quiet)
    made = json.loads((out / "generation_config.json").read_text())
    assert made == {"eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": 2}
    tokenizer = read_processor(out).tokenizer
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "</s>")


def test_a_placeholder_that_the_exported_model_generates_itself_is_not_rotated(
    run: Path, out: Path
) -> None:
    export(run, out, FAST, quiet)
    model = MedAlignLlavaForConditionalGeneration.from_pretrained(out).eval()
    seen: list[int] = []
    model.model.language_model.layers[2].visual_rotation.register_forward_hook(
        lambda _m, args, _out: seen.append(int(args[1].sum()))
    )
    token = model.config.image_token_id
    forced = torch.full((1, model.config.text_config.vocab_size), -1e9)
    forced[0, token] = 0.0
    made = model.generate(
        input_ids=torch.tensor([[5, *[token] * 16, 6]]),
        attention_mask=torch.ones(1, 18, dtype=torch.long),
        pixel_values=torch.randn(1, 3, 56, 56),
        do_sample=False,
        max_new_tokens=4,
        logits_processor=[lambda _ids, scores: forced.expand_as(scores)],
    )
    assert made[0, -4:].tolist() == [token] * 4
    assert seen == [16]  # once, in prefill


def test_an_exported_model_refuses_weights_that_lack_a_tensor(run: Path, out: Path) -> None:
    export(run, out, FAST, quiet)
    tensors = load_file(out / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"missing keys: lm_head\.weight \(1 in all\)"):
        MedAlignLlavaForConditionalGeneration.from_pretrained(out)


@pytest.mark.parametrize(
    ("finished", "asked", "step"),
    [(True, None, None), (True, "step-2", 2), (False, None, 4), (False, "last", 4)],
)
def test_a_checkpoint_is_chosen(
    finished: bool,
    asked: str | None,
    step: int | None,
    student: Path,
    make_run: Callable[..., Path],
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", student, finished=finished)
    found = find_origin(run, asked)
    inside = run / "adapter" if step is None else run / "checkpoints" / f"step-{step}" / "adapter"
    assert found.adapter == inside.resolve() if step else found.adapter == inside
    assert found.step == (step or 4)
    assert found.metrics["step"] == found.step


def test_the_best_checkpoint_is_the_one_its_link_names(run: Path) -> None:
    with pytest.raises(ExportError, match="no complete checkpoint 'best'; there are: step-2, st"):
        find_origin(run, "best")
    (run / "checkpoints" / "best").symlink_to("step-2")
    assert find_origin(run, "best").step == 2


@pytest.mark.parametrize("asked", ["step-3", "step-2/adapter", "../../student", ""])
def test_a_checkpoint_that_is_none_is_refused(run: Path, asked: str) -> None:
    with pytest.raises(ExportError, match="has no complete checkpoint"):
        find_origin(run, asked)


def test_a_changed_byte_of_a_checkpoint_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "step-2" / "adapter" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecipeError, match="is damaged"):
        find_origin(run, "step-2")


def test_a_folder_that_is_no_run_is_refused(student: Path, out: Path) -> None:
    with pytest.raises(ExportError, match=r"is no run folder: it has no recipe\.yaml"):
        export(student, out, FAST, quiet)


def test_a_run_without_a_checkpoint_is_refused(
    student: Path, make_run: Callable[..., Path], tmp_path: Path, out: Path
) -> None:
    run = make_run(tmp_path / "run", student, finished=False)
    for folder in (run / "checkpoints").iterdir():
        (folder.unlink if folder.is_symlink() else lambda f=folder: shutil.rmtree(f))()
    with pytest.raises(ExportError, match="nothing to export: no checkpoint was written yet"):
        export(run, out, FAST, quiet)


def test_a_student_that_moved_is_asked_for_and_a_changed_one_is_refused(
    run: Path, student: Path, out: Path, tmp_path: Path
) -> None:
    moved = student.rename(tmp_path / "moved")
    with pytest.raises(ExportError, match=r"is not at .*student; give --student DIR"):
        export(run, out, FAST, quiet)
    export(run, out, Wish(images_checked=0, student=moved), quiet)
    tensors = load_file(moved / "model.safetensors")
    save_file({k: t.half() for k, t in tensors.items()}, moved / "model.safetensors")
    with pytest.raises(ExportError, match=r"is not the student that .* was trained on"):
        export(run, out, Wish(student=moved), quiet)


def test_a_student_of_another_family_is_refused_by_name(run: Path, student: Path) -> None:
    (student / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(ExportError, match="is a 'qwen2_5_vl' student; only `llava` students can be"):
        find_origin(run)
    (student / "config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(ExportError, match="is a 'mistral' model"):
        find_origin(run)


def test_data_that_moved_are_asked_for(
    run: Path, out: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    text = (run / "recipe.yaml").read_text().replace(str(data[1]), str(tmp_path / "gone"))
    (run / "recipe.yaml").write_text(text)
    with pytest.raises(ExportError, match="are gone: give --manifest and --images"):
        export(run, out, Wish(), quiet)
    wish = Wish(images_checked=1, manifest=data[0], images=data[1])
    assert len(export(run, out, wish, quiet).checked) == 1


def test_an_image_that_cannot_be_read_is_passed_over(
    run: Path, out: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    images = Path(shutil.copytree(data[1], tmp_path / "images"))
    (images / "0.png").write_bytes(b"no picture")
    done = export(run, out, Wish(images_checked=2, images=images), quiet)
    assert [one.record for one in done.checked] == [3, 2]


def test_an_out_that_holds_something_is_left_alone(run: Path, out: Path) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not empty; choose another --out"):
        export(run, out, FAST, quiet)
    with pytest.raises(ExportError, match="holds something else than an export"):
        export(run, out, Wish(images_checked=0, overwrite=True), quiet)
    assert names(out) == ["mine.txt"]


def test_an_earlier_export_is_replaced_when_asked(run: Path, out: Path) -> None:
    export(run, out, FAST, quiet)
    (out / "stale.txt").write_text("from before")
    with pytest.raises(ExportError, match="or give --overwrite"):
        export(run, out, FAST, quiet)
    export(run, out, Wish(images_checked=0, overwrite=True), quiet)
    assert "stale.txt" not in names(out)
    assert names(out.parent) == ["out", "run", "student"]


def test_an_out_inside_the_run_or_the_student_or_around_them_is_refused(
    run: Path, student: Path, tmp_path: Path
) -> None:
    for out, where in (
        (run / "adapter", "is inside the run"),
        (run, "is inside the run"),
        (student / "merged", "is inside the student"),
        (tmp_path, "holds the run"),
    ):
        with pytest.raises(ExportError, match=where):
            export(run, out, FAST, quiet)
    assert not (student / "merged").exists()


@pytest.mark.parametrize("how", ["full", "interrupted"])
def test_a_full_disk_or_an_interrupt_leaves_what_was_there(
    how: str, run: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run, out, FAST, quiet)
    before = (out / "export.json").read_bytes()
    wish = Wish(images_checked=0, overwrite=True)

    def stop(_tensors: Any, path: Path, **_kwargs: Any) -> None:
        path.write_bytes(b"half")
        if how == "interrupted":
            raise KeyboardInterrupt
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(merge, "save_file", stop)
    with pytest.raises(KeyboardInterrupt if how == "interrupted" else OSError) as error:
        export(run, out, wish, quiet)
    assert getattr(error.value, "errno", errno.ENOSPC) == errno.ENOSPC
    assert names(out.parent) == ["out", "run", "student"]
    assert (out / "export.json").read_bytes() == before


def test_what_a_killed_export_left_is_swept_by_the_next(run: Path, out: Path) -> None:
    left = out.with_name(".out.writing")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    export(run, out, FAST, quiet)
    assert not left.exists()
    assert (out / "model.safetensors").stat().st_size > 1_000_000
