"""The step's loss: its split into micro-batches, and what it is without a teacher."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medalign.pipeline.manifest import read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.trainer.data.batch import Batch, collate
from medalign.trainer.data.dataset import Conversations
from medalign.trainer.objective import Objective, Share
from medalign.trainer.recipe.sections import LoraSection, LossSection
from medalign.trainer.student import add_adapter, checkpoint_activations, llava_of, load_base
from medalign.trainer.students.spec import read_student

Dataset = Callable[..., tuple[Path, Path, Path]]

EXTRA = [
    {
        "id": "text",
        "conversations": [
            {"from": "human", "value": "What is a rib?"},
            {"from": "gpt", "value": "A bone of the chest."},
        ],
    },
    {
        "id": "two images, two questions",
        "image": ["0.png", "3.png"],
        "conversations": [
            {"from": "human", "value": "Compare <image> with\n<image>. Is there a fracture?"},
            {"from": "gpt", "value": "no"},
            {"from": "human", "value": "Which organ is shown?"},
            {"from": "gpt", "value": "the lungs"},
        ],
    },
    {
        "id": "image last",
        "image": "2.png",
        "conversations": [
            {"from": "human", "value": "Is this an X-ray? <image>"},
            {"from": "gpt", "value": "yes"},
        ],
    },
]


@pytest.fixture
def samples(dataset: Dataset, students: Callable[..., Path]) -> Conversations:
    manifest, images, store = dataset(images=6, records=5, extra=EXTRA)
    spec = read_student(students())
    return Conversations(read_manifest(manifest), images, spec, 512, TeacherCache.open(store))


def student(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    base = load_base(folder, torch.float32)
    lora = LoraSection(rank=4, dropout=0.0)
    made = add_adapter(base, 2, lora, **{"rotation": True, "projector": True, **changes})
    for name, parameter in made.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "visual_rotation" in name):
            own = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.data.normal_(std=0.05, generator=own)
    return made.train()


def step_gradient(
    model: Any, loss: LossSection, batches: list[Batch]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Gradient of one step, accumulated as DeepSpeed does: mean over micro-steps."""
    tokens = sum(batch.answer_tokens for batch in batches)
    images = sum(batch.teacher_images for batch in batches)
    share = Share.of(tokens, images, len(batches))
    model.zero_grad()
    terms = torch.zeros(3)
    for batch in batches:
        total, part = Objective(model, loss)(batch, share)
        (total / len(batches)).backward()
        terms += part
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return grads, terms


def test_the_gradient_is_the_same_for_every_split_into_micro_batches(
    samples: Conversations, students: Callable[..., Path]
) -> None:
    model = student(students())
    loss = LossSection(layer=2, alpha=1.0, beta=0.5)
    everything = [samples[k] for k in range(8)]
    results = []
    for size in (8, 4, 1):
        batches = [collate(everything[k : k + size], 0) for k in range(0, 8, size)]
        results.append(step_gradient(model, loss, batches))
    wanted, terms = results[0]
    assert terms.min() > 0
    for grads, other in results[1:]:
        assert torch.allclose(other, terms, rtol=1e-5)
        assert grads.keys() == wanted.keys()
        for name, grad in wanted.items():
            assert torch.allclose(grads[name], grad, rtol=1e-4, atol=1e-6), name


def test_the_samples_of_these_tests_weigh_differently(samples: Conversations) -> None:
    # Otherwise the test above could not tell a mean over the step from a mean of means.
    counts = {(collate([samples[k]], 0).answer_tokens) for k in range(8)}
    assert len(counts) > 2
    assert {collate([samples[k]], 0).teacher_images for k in range(8)} == {0, 1, 2}


def test_alpha_and_beta_of_zero_and_no_rotation_is_the_plain_lora_loss(
    samples: Conversations, students: Callable[..., Path]
) -> None:
    batch = collate([samples[k] for k in range(5)], 0)
    share = Share.of(batch.answer_tokens, batch.teacher_images, 1)
    model = student(students())
    for name, parameter in model.named_parameters():
        if "visual_rotation" in name:
            parameter.data.zero_()
    total, terms = Objective(model, LossSection(layer=2, alpha=0.0, beta=0.0))(batch, share)
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.predicts + 1] = batch.targets
    plain = llava_of(student(students(), rotation=False))(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        labels=labels,
    )
    assert total.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    assert terms[1] > 0  # measured all the same


def test_terms_of_weight_zero_train_nothing(
    samples: Conversations, students: Callable[..., Path]
) -> None:
    batches = [collate([samples[k] for k in range(4)], 0)]
    model = student(students())
    weightless, _ = step_gradient(model, LossSection(layer=2, alpha=0.0, beta=0.0), batches)
    weighted, _ = step_gradient(model, LossSection(layer=2, alpha=1.0, beta=0.0), batches)
    rotation = next(name for name in weighted if "visual_rotation" in name)
    assert not torch.allclose(weightless[rotation], weighted[rotation])
    attended, _ = step_gradient(model, LossSection(layer=2, alpha=0.0, beta=1.0), batches)
    query = next(n for n in attended if "layers.2.self_attn.q_proj.lora_B" in n)
    assert not torch.allclose(weightless[query], attended[query])
    # Neither loss looks at anything above layer l.
    above = next(n for n in attended if "layers.3.mlp.up_proj.lora_B" in n)
    assert torch.allclose(weightless[above], attended[above], atol=1e-7)


def test_every_trained_parameter_has_a_gradient_on_a_batch_without_images(
    samples: Conversations, students: Callable[..., Path]
) -> None:
    batch = collate([samples[5]], 0)
    assert batch.pixel_values is None
    grads, terms = step_gradient(student(students()), LossSection(layer=2), [batch])
    assert terms[0] > 0
    assert terms[1] == terms[2] == 0
    model = student(students())
    assert grads.keys() == {n for n, p in model.named_parameters() if p.requires_grad}


def test_re_entrant_checkpointing_is_refused_because_it_would_cut_the_gradient(
    samples: Conversations, students: Callable[..., Path]
) -> None:
    model = student(students())
    llava = llava_of(model)
    checkpoint_activations(llava, reentrant=True)
    llava.enable_input_require_grads()
    batch = collate([samples[0]], 0)
    with pytest.raises(RuntimeError, match="re-entrant"):
        Objective(model, LossSection(layer=2, beta=1.0))(batch, Share.of(1, 1, 1))
