import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medalign.cli import app
from medalign.trainer.export import export as job
from medalign.trainer.export.export import Wish, export
from medalign.trainer.export.modeling_medalign_llava import MedAlignLlavaForConditionalGeneration
from medalign.trainer.export.provenance import ExportError
from medalign.trainer.loop import Step
from medalign.trainer.prepared import with_paths
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.train import train

FAST = Wish(images_checked=0)


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


def test_a_run_that_was_trained_and_stopped_is_exported_from_its_checkpoint(
    dataset: Callable[..., tuple[Path, Path, Path]],
    recipe: Callable[..., Recipe],
    students: Callable[..., Path],
    tmp_path: Path,
    out: Path,
) -> None:
    def stop(step: Step, _of: int) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    manifest, images, store = dataset()
    chosen = with_paths(recipe(), student=students(), manifest=manifest, images=images)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(chosen, store, run, say=print, report=stop)
    said: list[str] = []
    done = export(run, out, Wish(images_checked=2), said.append)
    assert said[0] == f"run      {run}: unfinished, step 2"
    assert done.layer == 2
    assert "a run that is not finished" in (out / "README.md").read_text()
    licence = json.loads((run / "environment.json").read_text())["cache"]["licence"]
    assert f": {licence or 'not recorded'}\n" in (out / "README.md").read_text()


def test_the_record_names_what_it_was_made_of_and_every_file(run: Path, out: Path) -> None:
    export(run, out, FAST, print)
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
    (student / "LICENSE.txt").write_text("terms")
    export(run, out, FAST, print)
    card = (out / "README.md").read_text()
    for text in (
        "license: llama2", "decoder layer 2", "`train.jsonl`, 5 conversations", "`unimed-l`, 4",
        f"fingerprint `{'f' * 64}`", "expert `unimed-l`: CC-BY-NC-4.0", "4 conversations: CC0",
        "student `student`: llama2", "lm 0.5, vis 0.25", "Not checked", "rank: 4",
    ):  # fmt: skip
        assert text in card
    assert (out / "LICENSE.txt").read_text() == "terms"
    for folder in (run, student, data[1]):
        assert str(folder) not in card
        assert str(folder) not in (out / "export.json").read_text()


def test_equal_exports_are_equal_byte_for_byte(run: Path, out: Path, tmp_path: Path) -> None:
    export(run, out, FAST, print)
    again = tmp_path / "other" / "out"
    export(run, again, FAST, print)
    for name in names(out):
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_large_weights_are_cut_into_files_that_load_as_one(
    run: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SHARD_BYTES", 300_000)
    export(run, out, Wish(images_checked=1), print)
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
    done = export(run, out, Wish(images_checked=1), print)
    assert done.layer is None
    assert json.loads((out / "config.json").read_text())["model_type"] == "llava"
    assert set(load_file(out / "model.safetensors")) == set(
        load_file(student / "model.safetensors")
    )


def test_a_student_in_an_older_weight_format_is_exported_under_the_models_own_names(
    student: Path, make_run: Callable[..., Path], tmp_path: Path, out: Path
) -> None:
    torch.save(load_file(student / "model.safetensors"), student / "pytorch_model.bin")
    (student / "model.safetensors").unlink()
    done = export(make_run(tmp_path / "run", student), out, Wish(images_checked=1), print)
    assert done.layer == 2
    assert "model.language_model.norm.weight" in load_file(out / "model.safetensors")


def test_what_lora_did_not_touch_is_the_students_bit_for_bit(
    run: Path, out: Path, student: Path
) -> None:
    export(run, out, FAST, print)
    before, after = load_file(student / "model.safetensors"), load_file(out / "model.safetensors")
    kept = [name for name in before if torch.equal(before[name], after[name])]
    assert all("multi_modal_projector" in n or ".layers." in n for n in set(before) - set(kept))
    assert len(before) - len(kept) == 4 * 7 + 4  # LoRA's linear layers, and the projector


def test_a_placeholder_that_the_exported_model_generates_itself_is_not_rotated(
    run: Path, out: Path
) -> None:
    export(run, out, FAST, print)
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
    export(run, out, FAST, print)
    tensors = load_file(out / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"missing keys: lm_head\.weight \(1 in all\)"):
        MedAlignLlavaForConditionalGeneration.from_pretrained(out)


def test_data_that_moved_are_asked_for(
    run: Path, out: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    text = (run / "recipe.yaml").read_text().replace(str(data[1]), str(tmp_path / "gone"))
    (run / "recipe.yaml").write_text(text)
    with pytest.raises(ExportError, match="are gone: give --manifest and --images"):
        export(run, out, Wish(), print)
    wish = Wish(images_checked=1, manifest=data[0], images=data[1])
    assert len(export(run, out, wish, print).checked) == 1


def test_an_image_that_cannot_be_read_is_passed_over(
    run: Path, out: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    images = Path(shutil.copytree(data[1], tmp_path / "images"))
    (images / "0.png").write_bytes(b"no picture")
    done = export(run, out, Wish(images_checked=2, images=images), print)
    assert [one.record for one in done.checked] == [3, 2]
