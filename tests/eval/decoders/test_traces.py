"""Any order of decoders, any batch: no trace in the model, no influence between samples."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medalign.eval.decoders import SPECS, DecodingError, decode, make_spec
from medalign.eval.decoders import streams as stream
from medalign.eval.decoders.settings import Greedy, check_family
from medalign.trainer.recipe.sections import LoraSection
from medalign.trainer.student import add_adapter, llava_of

TOKENS = 6


def state_of(model: Any) -> list[object]:
    """Everything a decoder might leave behind."""
    found: list[object] = [model.generation_config, model.training]
    for module in model.modules():
        found += [*module._forward_hooks, *module._forward_pre_hooks]
        found.append(getattr(module, "config", None))
        found.append(sorted(vars(module)))
    return found


def answer(bench: Any, name: str, *picked: int) -> Tensor:
    spec = make_spec(name, None, {"max_new_tokens": TOKENS})
    ids = [f"r{k}" for k in picked]
    new: Tensor = decode(bench.model, bench.inputs(*picked), spec, 7, ids=ids)
    return new


@pytest.mark.parametrize("name", list(SPECS))
def test_an_answer_does_not_depend_on_its_batch(bench: Any, name: str) -> None:
    together = answer(bench, name, 0, 1, 2, 3)
    turned = answer(bench, name, 3, 2, 1, 0)
    for k in range(4):
        alone = answer(bench, name, k)[0]
        # A batch is as long as its longest answer; what follows an end token is padding.
        length = min(len(alone), together.shape[1])
        assert torch.equal(together[k][:length], alone[:length])
        assert torch.equal(turned[3 - k][:length], alone[:length])


@pytest.mark.parametrize("name", ["vcd", "avisc", "m3id", "damro", "pai", "opera"])
def test_prompts_may_have_several_images(benches: Any, name: str) -> None:
    bench = benches("mistral")
    image = [bench.model.config.image_token_id] * 16
    several = [1, 10, *image, *image, 20, 21]
    with_two = {
        "input_ids": torch.tensor([several]),
        "attention_mask": torch.ones(1, len(several), dtype=torch.long),
        "pixel_values": bench.pixels[:2],
    }
    one = bench.inputs(2)
    gap = len(several) - len(bench.rows[2])
    both = {
        "input_ids": torch.cat([F.pad(one["input_ids"], (gap, 0)), with_two["input_ids"]]),
        "attention_mask": torch.cat(
            [F.pad(one["attention_mask"], (gap, 0)), with_two["attention_mask"]]
        ),
        "pixel_values": torch.cat([one["pixel_values"], with_two["pixel_values"]]),
    }
    spec = make_spec(name, None, {"max_new_tokens": 4})
    if name == "damro":
        spec = make_spec(name, None, {"max_new_tokens": 4, "mode": "drop"})
    together = decode(bench.model, both, spec, ids=["a", "b"])
    for row, (inputs, record) in enumerate(((one, "a"), (with_two, "b"))):
        alone = decode(bench.model, inputs, spec, ids=[record])[0]
        length = min(len(alone), together.shape[1])
        assert torch.equal(together[row][:length], alone[:length])


@pytest.mark.parametrize("name", list(SPECS))
def test_a_decoder_leaves_no_trace(bench: Any, name: str) -> None:
    before = state_of(bench.model)
    with torch.no_grad():
        logits = bench.model(**bench.inputs(0, 1)).logits
    first = answer(bench, name, 0, 1)
    assert state_of(bench.model) == before
    with torch.no_grad():
        assert torch.equal(bench.model(**bench.inputs(0, 1)).logits, logits)
    for other in ("pai", "dola"):
        answer(bench, other, 0, 1)
    assert torch.equal(answer(bench, name, 0, 1), first)


@pytest.mark.parametrize("name", ["vcd", "avisc", "m3id", "damro", "pai"])
def test_a_decoder_that_fails_leaves_no_trace(
    bench: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(bench.model)

    def fail(*_: object, **_given: object) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(stream.ContrastStream, "_forward", fail)
    with pytest.raises(MemoryError):
        answer(bench, name, 0)
    assert state_of(bench.model) == before


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize("good", [0, 2])
def test_a_model_that_fails_leaves_no_trace(bench: Any, name: str, good: int) -> None:
    """At the prompt, or when some tokens have been chosen."""
    before, passes = state_of(bench.model), 0

    def fail(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes > good:
            raise MemoryError

    hook = bench.model.lm_head.register_forward_pre_hook(fail)
    try:
        with pytest.raises(MemoryError):
            answer(bench, name, 0, 1)
    finally:
        hook.remove()
    assert state_of(bench.model) == before


@pytest.mark.parametrize("name", [name for name, kind in SPECS.items() if kind().sampled])
def test_what_is_drawn_depends_on_seed_and_record(bench: Any, name: str) -> None:
    def draw(seed: int, record: str) -> list[int]:
        spec = make_spec(name, None, {"max_new_tokens": TOKENS})
        found = decode(bench.model, bench.inputs(0), spec, seed, ids=[record])
        return list(map(int, found[0]))

    assert draw(0, "a") == draw(0, "a")
    assert draw(0, "a") != draw(1, "a")
    assert draw(0, "a") != draw(0, "b")


@pytest.mark.parametrize("name", list(SPECS))
def test_an_adapter_is_part_of_every_decoder(adapted: Any, name: str) -> None:
    """With and without PEFT's wrapper the same; with W = 0 something else."""
    spec = make_spec(name, None, {"max_new_tokens": TOKENS})
    wrapped = decode(adapted.model, adapted.inputs(0, 1), spec)
    assert torch.equal(decode(llava_of(adapted.model), adapted.inputs(0, 1), spec), wrapped)
    weights = [p for n, p in adapted.model.named_parameters() if "visual_rotation" in n]
    kept = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p in weights:
            p.zero_()
    plain = decode(adapted.model, adapted.inputs(0, 1), spec)
    with torch.no_grad():
        for p, value in zip(weights, kept, strict=True):
            p.copy_(value)
    assert not torch.equal(plain, wrapped)


def test_contrast_with_the_clean_image_is_greedy_under_an_adapter(
    adapted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medalign.eval.decoders.vcd.noised_images", lambda pixels, *_: pixels)
    strong = {"alpha": 4.0, "temperature": 0.0, "max_new_tokens": TOKENS}
    found = decode(adapted.model, adapted.inputs(0, 1, 3), make_spec("vcd", None, strong))
    greedy = decode(adapted.model, adapted.inputs(0, 1, 3), Greedy(max_new_tokens=TOKENS))
    assert torch.equal(found, greedy)


def test_other_families_are_refused_by_name() -> None:
    for name, kind in SPECS.items():
        if name in ("greedy", "beam", "nucleus"):
            check_family(kind(), "gemma3")
        else:
            with pytest.raises(DecodingError, match=f"{name} works with llava .*not gemma3"):
                check_family(kind(), "gemma3")


def test_ids_are_one_for_each_prompt(bench: Any) -> None:
    with pytest.raises(DecodingError, match="2 prompts have 1 ids"):
        decode(bench.model, bench.inputs(0, 1), Greedy(), ids=["a"])


@pytest.fixture(scope="module")
def adapted(benches: Any) -> Any:
    """The Qwen2 student below a PEFT adapter with LoRA, projector and rotation, none of them 0."""
    bench = benches("qwen2", adapter=True)
    if not hasattr(bench.model, "peft_config"):
        bench.model = add_adapter(
            bench.model, 2, LoraSection(rank=4, alpha=8.0), rotation=True, projector=True
        ).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, p in bench.model.named_parameters():
                if "lora_" in name or "visual_rotation" in name:
                    p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return bench
