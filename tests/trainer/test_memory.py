from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medalign.trainer.data.batch import Batch, collate
from medalign.trainer.distributed.engine import Engine
from medalign.trainer.distributed.ranks import Ranks
from medalign.trainer.memory import (
    BUCKET,
    FP32,
    Load,
    Parameters,
    Settings,
    Shape,
    checkpoint_bytes,
    estimate,
    kept_bytes,
    layer_bytes,
    states,
    step_operations,
)
from medalign.trainer.objective import Objective, Share
from medalign.trainer.preflight import measure
from medalign.trainer.preflight.shapes import count_parameters, load_of, settings_of, shape_of
from medalign.trainer.prepared import Prepared, prepare, with_paths
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.student import checkpoint_activations, load_base
from medalign.trainer.train import adapted, load_engine, samples_of

# LLaVA-Med 1.5: Mistral 7B, CLIP ViT-L/14 at 336 px.
PARAMETERS = Parameters(
    frozen=7_000_000_000, linear=6_500_000_000, lora=160_000_000, projector=20_000_000,
    rotation=20_000_000,
)  # fmt: skip
SHAPE = Shape(
    layers=32, width=4096, inner=14336, query_width=4096, key_width=1024, heads=32,
    vocabulary=32000, tower_width=1024,
)  # fmt: skip
LOAD = Load(
    batch=4,
    tokens=700,
    images=4,
    visual=576,
    answers=80,
    question=30,
    teacher_bytes=5_000_000,
    padded=False,
)  # fmt: skip
CHOSEN = Settings(
    number_bytes=2, rank=64, dropout=True, checkpointing=False, flash=False, losses=True,
    rotation=True, stage=2,
)  # fmt: skip


@pytest.fixture
def run(
    dataset: Callable[..., tuple[Path, Path, Path]],
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
) -> Callable[..., tuple[Prepared, Batch]]:
    """A prepared run and its first micro-batch: `run(text_model, width=64, **recipe)`."""

    def make(text_model: str = "mistral", width: int = 64, **changes: Any) -> Any:
        manifest, images, cache = dataset(images=3, records=3)
        student = students(text_model, width=width)
        chosen = with_paths(recipe(**changes), student=student, manifest=manifest, images=images)
        plan = prepare(chosen, cache, world=1)
        samples = samples_of(plan)
        places = range(plan.recipe.data.batch_size)
        return plan, collate([samples[place] for place in places], plan.student.pad_id)

    return make


def by_formula(plan: Prepared, batch: Batch) -> tuple[Shape, Load, Settings]:
    return shape_of(plan.student), load_of(batch), settings_of(plan)


@pytest.mark.parametrize("text_model", ["mistral", "qwen2", "llama"])
@pytest.mark.parametrize("rotation", [True, False])
def test_parameters_counted_without_weights_are_those_of_the_real_model(
    text_model: str,
    rotation: bool,
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
) -> None:
    chosen = recipe(**{"loss.rotation": rotation, "optim.projector_lr": 1e-3 * rotation})
    folder = students(text_model)
    found = count_parameters(folder, chosen)
    real = adapted(load_base(folder, torch.float32), chosen)
    trained = {n: p.numel() for n, p in real.named_parameters() if p.requires_grad}
    assert found.trained == sum(trained.values())
    assert found.lora == sum(n for name, n in trained.items() if "lora" in name)
    assert found.rotation == (64 * 64 if rotation else 0)
    assert found.frozen == sum(p.numel() for p in real.parameters()) - found.trained
    assert found.linear == 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)  # 4 layers, 2 of 4 keys


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16")],
)
def test_weights_gradients_and_optimiser_are_as_large_as_the_formula_says(
    stage: int,
    dtype: str,
    run: Callable[..., tuple[Prepared, Batch]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # ZeRO 3 puts its own function here for the whole process; undone after this test.
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
    plan, batch = run(**{"deepspeed.stage": stage, "student.dtype": dtype})
    _, engine = load_engine(plan, Ranks())
    wanted = states(count_parameters(plan.student.path, plan.recipe), by_formula(plan, batch)[2])
    batch = batch.to("cpu", torch.bfloat16 if dtype == "bf16" else torch.float32)
    for _ in range(2):
        loss, _ = engine(batch, Share.of(batch.answer_tokens, batch.teacher_images, 2))
        engine.backward(loss)
        gradients = measure.gradient_bytes(engine)
        engine.step()
    measured = measure.weight_bytes(engine) | {
        "gradients": gradients,
        "optimiser": measure.optimiser_bytes(engine),
    }
    # DeepSpeed rounds its flat buffers up to a few numbers a group.
    for name, value in wanted.items():
        assert 0 <= measured[name] - value <= 200, name


@pytest.mark.parametrize(
    ("text_model", "width", "changes"),
    [
        ("mistral", 64, {}),
        ("mistral", 64, {"data.batch_size": 1}),
        ("mistral", 64, {"lora.dropout": 0.0}),
        ("mistral", 64, {"lora.dropout": 0.0, "data.batch_size": 1}),
        ("mistral", 64, {"loss.rotation": False}),
        ("qwen2", 256, {"student.dtype": "bf16", "deepspeed.stage": 1, "data.batch_size": 3}),
        ("llama", 256, {}),
        ("mistral", 64, {"deepspeed.stage": 3}),
        ("mistral", 64, {"deepspeed.stage": 3, "lora.dropout": 0.0}),
    ],
)
def test_autograd_keeps_what_the_formula_counts(
    text_model: str,
    width: int,
    changes: dict[str, Any],
    run: Callable[..., tuple[Prepared, Batch]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if changes.get("deepspeed.stage") == 3:
        from deepspeed.runtime.zero.linear import zero3_linear_wrap

        monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    plan, batch = run(text_model, width, **changes)
    shape, load, chosen = by_formula(plan, batch)
    dtype = torch.bfloat16 if chosen.number_bytes == 2 else torch.float32
    model = adapted(load_base(plan.student.path, dtype), plan.recipe).to(dtype).train()
    objective = Objective(model, plan.recipe.loss)
    with measure.SavedTensors(objective) as saved:
        objective(batch.to("cpu", dtype), Share(1.0, 1.0))
    assert load.padded == (plan.recipe.data.batch_size > 1)
    assert kept_bytes(shape, load, chosen) == pytest.approx(saved.bytes, rel=0.03)


def test_checkpointing_keeps_a_layers_input_and_recomputes_one_layer(
    run: Callable[..., tuple[Prepared, Batch]],
) -> None:
    plan, batch = run(**{"data.batch_size": 1})
    shape, load, chosen = by_formula(plan, batch)
    recomputing = replace(chosen, checkpointing=True)
    difference = kept_bytes(shape, load, chosen) - kept_bytes(shape, load, recomputing)
    assert difference == 4 * (layer_bytes(shape, load, chosen) - load.tokens * 64 * 4)
    base = load_base(plan.student.path, torch.float32)
    model = adapted(base, plan.recipe)
    checkpoint_activations(base)
    objective = Objective(model.train(), plan.recipe.loss)
    # Layer inputs are held by closures that SavedTensors does not see.
    with measure.SavedTensors(objective) as saved:
        objective(batch, Share(1.0, 1.0))
    assert saved.bytes < 0.25 * kept_bytes(shape, load, chosen)


def test_zero_divides_what_its_stages_say() -> None:
    world = 8
    found = [
        states(PARAMETERS, replace(CHOSEN, stage=stage, world=world)) for stage in (0, 1, 2, 3)
    ]
    trained = PARAMETERS.trained
    for stage, held_bytes in enumerate(found):
        assert held_bytes == {
            "frozen": 14_000_000_000 // (world if stage == 3 else 1),
            "trained": 2 * trained // (world if stage == 3 else 1),
            "gradients": 2 * trained // (world if stage >= 2 else 1),
            "optimiser": 12 * trained // (world if stage >= 1 else 1),
        }


def test_offload_and_quantisation_take_bytes_off_the_device() -> None:
    plain = estimate(PARAMETERS, SHAPE, LOAD, CHOSEN)
    offloaded = estimate(PARAMETERS, SHAPE, LOAD, replace(CHOSEN, offload="optimizer"))
    assert (plain.optimiser, offloaded.optimiser) == (12 * PARAMETERS.trained, 0)
    assert plain.frozen == offloaded.frozen
    everything = estimate(PARAMETERS, SHAPE, LOAD, replace(CHOSEN, offload="all", stage=3))
    assert everything.frozen == everything.trained == 0
    quantised = estimate(PARAMETERS, SHAPE, LOAD, replace(CHOSEN, quantized=True))
    # 0.5 billion in bf16, 6.5 billion in 4.127 bits.
    assert quantised.frozen == pytest.approx(1e9 + 6.5e9 * 4.127 / 8)


def test_a_layer_of_a_7b_student_keeps_what_is_counted_by_hand() -> None:
    # Per token: 2*4C norms; (3C + Q + 2C + M)(2 + 1) dropped-out inputs and their masks;
    # 2*2(Q + K) attention; 3*2M MLP; 7*2*64 LoRA. C = Q = 4096, K = 1024, M = 14336.
    per_token = 32768 + (6 * 4096 + 14336) * 3 + 20480 + 86016 + 896
    assert layer_bytes(SHAPE, LOAD, CHOSEN) == 4 * 700 * per_token
    padded = replace(LOAD, padded=True)
    more = 4 * 700 * (4 * 2 * 4096 - 20480) + 4 * 700**2 * 2
    assert layer_bytes(SHAPE, padded, CHOSEN) == 4 * 700 * per_token + more
    flash = replace(CHOSEN, flash=True)
    assert layer_bytes(SHAPE, padded, flash) == layer_bytes(SHAPE, LOAD, CHOSEN)


def test_the_parts_sum_up_and_the_rest_has_deepspeeds_bucket() -> None:
    found = estimate(PARAMETERS, SHAPE, LOAD, CHOSEN)
    parts = (found.frozen, found.trained, found.gradients, found.optimiser)
    assert found.total == sum(parts) + found.activations + found.teacher + found.rest
    assert found.rest > 2 * BUCKET + FP32 * PARAMETERS.trained
    assert found.teacher == LOAD.teacher_bytes
    assert (
        estimate(PARAMETERS, SHAPE, LOAD, replace(CHOSEN, stage=0)).rest < found.rest - 2 * BUCKET
    )


def test_checkpointing_costs_a_forward_pass_more() -> None:
    plain = step_operations(PARAMETERS, LOAD, CHOSEN)
    again = step_operations(PARAMETERS, LOAD, replace(CHOSEN, checkpointing=True))
    assert again - plain == 2 * 4 * 700 * PARAMETERS.frozen
    assert plain == 4 * 700 * (4 * PARAMETERS.frozen + 6 * PARAMETERS.trained)


def test_a_checkpoint_holds_three_float32_numbers_and_the_adapter() -> None:
    assert checkpoint_bytes(1000, 2) == 14_000


def test_gradients_are_seen_only_between_backward_and_update(
    run: Callable[..., tuple[Prepared, Batch]],
) -> None:
    plan, batch = run(**{"data.accumulation": 1})
    _, engine = load_engine(plan, Ranks())
    assert isinstance(engine, Engine)
    assert measure.gradient_bytes(engine) == 0
    loss, _ = engine(batch, Share(1.0, 1.0))
    engine.backward(loss)
    assert measure.gradient_bytes(engine) == measure.weight_bytes(engine)["trained"]
    engine.step()
    assert measure.gradient_bytes(engine) == 0
