"""Doctor and plan with students of every family."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from medalign.cli import app
from medalign.trainer.data.batch import collate
from medalign.trainer.memory import kept_bytes
from medalign.trainer.objective import Objective, Share
from medalign.trainer.preflight import measure
from medalign.trainer.preflight.shapes import count_parameters, load_of, settings_of, shape_of
from medalign.trainer.prepared import prepare, with_paths
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.student import load_base
from medalign.trainer.train import adapted, samples_of

FAMILIES = ("gemma3", "qwen2_5_vl")
Conversations = Callable[..., tuple[Path, Path, Path]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_doctor_reads_images_where_their_shape_decides_their_tokens(
    family: str, family_folder: Callable[[str], Path], conversations: Conversations
) -> None:
    manifest, images, _ = conversations()
    given = ["doctor", manifest, "--images", images, "--student", family_folder(family), "--json"]
    done = CliRunner().invoke(app, [str(word) for word in given])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (lengths,) = [check for check in found["checks"] if check["name"] == "lengths"]
    assert lengths["text"].startswith("5 conversations of ")
    assert "unusable" not in lengths["text"]
    shown = [piece["text"] for p in found["previews"] for piece in p["pieces"]]
    assert any(text.startswith("<image x") for text in shown)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_and_activations_of_every_family(
    family: str,
    family_folder: Callable[[str], Path],
    conversations: Conversations,
    recipe: Callable[..., Recipe],
) -> None:
    manifest, images, _ = conversations()
    folder = family_folder(family)
    chosen = recipe(**{"loss.alpha": 0.0, "loss.beta": 0.0, "loss.layer": 1})
    chosen = with_paths(chosen, student=folder, manifest=manifest, images=images)
    run = prepare(chosen, None, world=1)
    samples = samples_of(run)
    batch = collate([samples[0], samples[1]], run.student.pad_id)
    model = adapted(load_base(folder, torch.float32), chosen).train()
    parameters = count_parameters(folder, chosen)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parameters.trained == trained
    assert parameters.frozen == sum(p.numel() for p in model.parameters()) - trained
    with measure.SavedTensors(model) as saved:
        Objective(model, chosen.loss)(batch, Share(1.0, 1.0))
    settings = settings_of(run)
    wanted = kept_bytes(shape_of(run.student), load_of(batch), settings)
    assert wanted == pytest.approx(saved.bytes, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_every_family_is_checked_by_the_same_rules(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    done = CliRunner().invoke(
        app, ["student", "check", str(family_folder(family)), "--forward", "--json"]
    )
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.exit_code == 0, found
    assert found.pop("forward")["status"] == "warning"  # made for Llava students alone
    assert {name: check["status"] for name, check in found.items()} == dict.fromkeys(
        ["config", "tensors", "dtype", "values", "tokenizer", "template", "generation"], "ok"
    )
