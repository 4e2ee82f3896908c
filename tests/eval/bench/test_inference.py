import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medalign.eval.bench import inference_cost as inference
from medalign.eval.bench.cost_table import as_json, as_table
from medalign.eval.bench.inference_cost import (
    BenchError,
    BenchPlan,
    Measured,
    Report,
    Timing,
    bench_inference,
    bench_prompts,
    overheads,
    sample_images,
    time_answer,
)
from medalign.eval.source import find_source
from medalign.trainer.student import llava_of, load_base
from medalign.trainer.students.probe import without_rotation
from medalign.trainer.students.spec import StudentError

CPU = torch.device("cpu")
WANTED = BenchPlan(tokens=3, repeats=2, warmups=1)
TIMING = Timing(prefill_ms=4.0, token_ms=2.0, new_tokens=3, peak_bytes=10**6)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def silent(_text: str) -> None:
    pass


def prompts(student: Path, count: int = 1) -> list[Any]:
    source = find_source(student)
    config = load_base(student, torch.float32).config
    images = sample_images()[:count]
    made: list[Any] = bench_prompts(source, config, images, "Is it normal?", CPU)
    return made


@torch.no_grad()
def logits(model: Any, prompt: Any) -> Tensor:
    found: Tensor = model(**prompt.inputs).logits
    return found


def test_without_the_rotation_the_model_has_none(student: Path, adapter: Path) -> None:
    (prompt,) = prompts(student)
    model = llava_of(find_source(adapter).load(CPU))
    block = model.model.language_model.layers[1]
    turned = logits(model, prompt)
    with without_rotation(model):
        assert not hasattr(block, "visual_rotation")
        assert not block._forward_pre_hooks
        assert not model.model._forward_pre_hooks
        plain = logits(model, prompt)
    assert (turned - plain).abs().max() > 1e-3
    assert torch.equal(logits(model, prompt), turned)
    with pytest.raises(RuntimeError, match="stop"), without_rotation(model):
        raise RuntimeError("stop")
    assert torch.equal(logits(model, prompt), turned)


def test_a_base_model_without_its_random_rotation_is_the_base_model(student: Path) -> None:
    (prompt,) = prompts(student)
    base = load_base(student, torch.float32)
    before = logits(base, prompt)
    ((_, rotated),) = list(inference._models(find_source(student), None, CPU))
    assert (logits(rotated, prompt) - before).abs().max() > 1e-4
    with without_rotation(rotated):
        assert torch.equal(logits(rotated, prompt), before)


def test_each_variant_is_the_model_that_it_is_called(
    student: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def look(model: Any, prompt: Any, _tokens: int) -> Timing:
        seen.append(logits(model, prompt))
        return TIMING

    monkeypatch.setattr(inference, "time_answer", look)
    wanted = replace(WANTED, repeats=1, warmups=0)
    report = bench_inference(student, adapter, wanted, silent)
    names = [(one.weights, one.rotation) for one in report.variants]
    pairs = [
        (name, turned) for name in ("student", "adapter", "merged") for turned in (True, False)
    ]
    assert names == pairs
    found = dict(zip(names, seen, strict=True))
    for name in ("student", "adapter", "merged"):
        assert (found[name, True] - found[name, False]).abs().max() > 1e-4
    assert (found["adapter", True] - found["student", False]).abs().max() > 1e-2
    for turned in (True, False):
        merged = found["merged", turned]
        torch.testing.assert_close(found["adapter", turned], merged, rtol=1e-3, atol=1e-3)
    sizes = {name: one.weight_bytes for name, one in zip(names, report.variants, strict=True)}
    assert sizes["merged", True] - sizes["merged", False] == 32 * 32 * 4
    assert sizes["adapter", False] > sizes["merged", False] == sizes["student", False]
    assert report.layer == 1


def test_the_variant_that_begins_changes_and_prompts_are_shared(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def note(model: Any, prompt: Any, _tokens: int) -> Timing:
        turned = any(name.endswith("visual_rotation") for name, _ in model.named_modules())
        order.append((turned, id(prompt)))
        return TIMING

    monkeypatch.setattr(inference, "time_answer", note)
    bench_inference(student, None, replace(WANTED, repeats=4), silent)
    assert [turned for turned, _ in order] == [False, True] + [True, False, False, True] * 2
    assert all(a[1] == b[1] for a, b in zip(order[::2], order[1::2], strict=True))
    assert len({prompt for _, prompt in order}) == 5  # each answer's image is another one


def test_tokens_are_counted(student: Path) -> None:
    report = bench_inference(student, None, WANTED, silent)
    spec = find_source(student).spec()
    assert report.visual_tokens == (16, 16)
    (prompt,) = prompts(student)
    text = "USER: <image>\nIs it normal? ASSISTANT:"
    assert (
        spec.encoder.tokenizer.decode(prompt.inputs["input_ids"][0])
        .replace("<image>" * 16, "<image>")
        .endswith(text)
    )
    assert prompt.tokens == prompt.inputs["input_ids"].numel()
    for variant in report.variants:
        assert [timing.new_tokens for timing in variant.timings] == [3, 3]
        for timing in variant.timings:
            assert timing.prefill_ms > 0 < timing.token_ms
            assert timing.peak_bytes > variant.weight_bytes


def test_an_end_token_does_not_end_a_measured_answer(student: Path) -> None:
    (prompt,) = prompts(student)
    model = load_base(student, torch.float32)
    first = int(logits(model, prompt)[0, -1].argmax())
    own = model.generation_config
    own.eos_token_id = first
    timing = time_answer(model, prompt, 5)
    assert timing.new_tokens == 5
    assert model.generation_config is own


def test_a_run_without_rotation_is_measured_by_itself(
    student: Path, make_adapter: Callable[[bool], Path]
) -> None:
    report = bench_inference(student, make_adapter(False), WANTED, silent)
    rows = [(one.weights, one.rotation) for one in report.variants]
    assert rows[2:] == [("adapter", False), ("merged", False)]
    assert list(as_json(report)["overhead_of_rotation"]) == ["student"]


def made(rotation: bool, *prefills: float) -> Measured:
    timings = [replace(TIMING, prefill_ms=value) for value in prefills]
    return Measured("student", rotation, 1000, timings)


def test_overheads_compare_answer_with_answer() -> None:
    with_, without = made(True, 11.0, 30.0, 8.0), made(False, 10.0, 20.0, 10.0)
    # +10%, +50% and -20%: of so few, the least and the most
    assert overheads(with_, without, "prefill_ms") == pytest.approx((0.1, -0.2, 0.5))
    more = made(True, 1.0, 2.0, 3.0, 4.0, 5.0), made(False, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert overheads(*more, "prefill_ms") == pytest.approx((2.0, 1.0, 3.0))


def test_the_report_says_what_was_measured_on_what() -> None:
    variants = [made(True, 11.0, 30.0, 8.0), made(False, 10.0, 20.0, 10.0)]
    report = Report(CPU, torch.float32, 2, (90, 92), (16, 16), variants)
    table = as_table(report)
    assert "| student | with | 11.00 (8.00 to 30.00) | 2.00 (2.00 to 2.00) | 1.0 | 0.0 |" in table
    assert "first token +10.0% (-20.0% to +50.0%), each further +0.0%" in table
    assert "prompts of 90 to 92 tokens, 16 of them visual; answers of 3 tokens" in table
    assert "3 repetitions, in brackets the least and the most of them" in table
    about = as_json(report)
    assert about["spread"] == "range"
    assert about["dtype"] == "float32"
    assert about["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(about["versions"]["torch"])
    assert len(about["variants"][1]["timings"]) == 3


def test_brackets_hold_what_so_many_repetitions_can_say() -> None:
    def table(repeats: int) -> tuple[str, str]:
        prefills = [10.0 + k for k in range(repeats)]
        variants = [made(True, *prefills), made(False, *[10.0] * repeats)]
        report = Report(CPU, torch.float32, 2, (90, 92), (16, 16), variants)
        return as_table(report), as_json(report)["spread"]

    once, _ = table(1)
    assert "measured once, so no spread is known" in once
    assert "first token +0.0%, each further +0.0%" in once
    five, spread = table(5)
    assert "5 repetitions, in brackets their quartiles" in five
    assert "| student | with | 12.00 (11.00 to 13.00) |" in five
    assert "first token +20.0% (+10.0% to +30.0%)" in five
    assert spread == "quartiles"


def test_what_cannot_be_measured_is_refused(student: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="at least 2 tokens"):
        bench_inference(student, None, replace(WANTED, tokens=1), silent)
    with pytest.raises(BenchError, match=r"of 4095 \(--tokens\) do not fit .* 4096 positions"):
        bench_inference(student, None, replace(WANTED, tokens=4095), silent)
    with pytest.raises(BenchError, match="is no student but a run or an adapter"):
        bench_inference(adapter, None, WANTED, silent)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(StudentError, match="is not the student that"):
        bench_inference(other, adapter, WANTED, silent)
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(BenchError, match=r"x\.png"):
        bench_inference(student, None, replace(WANTED, images=[tmp_path / "x.png"]), silent)


def test_the_command_prints_json(student: Path, medalign: Callable[..., str]) -> None:
    words = ("bench", "inference", student, "--tokens", "2", "--repeats", "1", "--warmups", "0")
    printed = medalign(*words, "--json")
    found = json.loads(printed[: printed.rindex("}") + 1])
    assert [one["rotation"] for one in found["variants"]] == [True, False]
