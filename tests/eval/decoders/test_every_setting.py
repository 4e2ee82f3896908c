"""Every setting of a decoder reaches the scores that choose a token."""

from typing import Any

import pytest
import torch
from torch import Tensor

from medalign.eval.decoders import SPECS, decode, make_spec, opera
from medalign.eval.decoders import call as finite
from medalign.eval.decoders.settings import settings_of

OPEN_GATE = {"gate": 1.0}
LATE = {"max_new_tokens": 12}  # OPERA looks at other tokens from the eleventh on
REFERENCE = {"variant": "reference"}

CHANGES: list[tuple[str, dict[str, Any], str, Any]] = [
    ("beam", {}, "beams", 2),
    ("nucleus", {}, "top_p", 0.3),
    ("nucleus", {}, "top_k", 2),
    ("nucleus", {}, "temperature", 0.5),
    ("vcd", {}, "alpha", 2.0),
    ("vcd", {}, "beta", 0.6),
    ("vcd", {}, "noise_step", 700),
    ("vcd", {}, "top_p", 0.3),
    ("vcd", REFERENCE, "beta", 0.6),
    ("vcd", {}, "variant", "reference"),
    ("dola", {}, "layers", "high"),
    ("dola", {}, "relative_top", 0.6),
    ("dola", {}, "repetition_penalty", 2.0),
    ("opera", {}, "beams", 3),
    ("opera", {}, "candidates", 3),
    ("opera", {}, "weight", 2.0),
    ("opera", LATE, "scale", 200.0),
    ("opera", {}, "variant", "reference"),
    ("avisc", {}, "alpha", 2.0),
    ("avisc", {}, "beta", 0.6),
    ("avisc", {}, "gamma", 1.0),
    ("avisc", {}, "lambda", -0.5),
    ("avisc", {}, "scheme", "ones"),
    ("avisc", {}, "scheme", "noise"),
    ("m3id", OPEN_GATE, "lambda", 0.5),
    ("m3id", {}, "gate", 0.0),
    ("m3id", REFERENCE, "lambda", 0.5),
    ("m3id", REFERENCE, "beta", 0.6),
    ("m3id", OPEN_GATE, "variant", "reference"),
    ("damro", {}, "alpha", 2.0),
    ("damro", {}, "beta", 0.6),
    ("damro", {}, "top_tokens", 3),
    ("damro", {}, "mode", "drop"),
    ("damro", {}, "layer", -2),
    ("damro", {"top_tokens": 3}, "split_heads", False),
    ("damro", REFERENCE, "beta", 0.6),
    ("damro", {}, "variant", "reference"),
    ("pai", {}, "alpha", 1.0),
    ("pai", {}, "gamma", 2.0),
    ("pai", {}, "beta", 0.6),
    ("pai", {}, "first_layer", 0),
    ("pai", {}, "last_layer", 3),
    ("pai", {}, "first_token", False),
    ("pai", {}, "variant", "reference"),
]
ELSEWHERE = {  # rewinding and DoLa's divergence, on scripts and numbers of their own
    *(("opera", name) for name in ("threshold", "window")),
    ("dola", "variant"),
}
OF_ALL = {"max_new_tokens", "temperature", "top_k", "top_p"}


def test_no_setting_is_left_out() -> None:
    own = {(name, key) for name in SPECS for key, _ in settings_of(SPECS[name])}
    changed = {(name, key) for name, _, key, _ in CHANGES}
    assert {(name, key) for name, key in own - changed - ELSEWHERE if key not in OF_ALL} == set()


@pytest.mark.parametrize(("name", "base", "setting", "value"), CHANGES)
def test_a_setting_changes_scores(
    benches: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    base: dict[str, Any],
    setting: str,
    value: object,
) -> None:
    bench = benches("mistral")
    seen: list[Tensor] = []

    def keep(scores: Tensor, _decoder: str) -> None:
        seen.append(scores.clone())

    monkeypatch.setattr(finite, "refuse_no_numbers", keep)
    monkeypatch.setattr(opera, "refuse_no_numbers", keep)
    inputs = bench.inputs(0, 1)
    inputs |= {"question_ids": torch.tensor([[70, 71], [72, 73]])}

    def scores(settings: dict[str, Any]) -> list[Tensor]:
        seen.clear()
        decode(bench.model, inputs, make_spec(name, None, {"max_new_tokens": 3, **settings}), 5)
        return list(seen)

    plain, again, other = scores(base), scores(base), scores({**base, setting: value})
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert len(other) != len(plain) or not all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(plain, other, strict=True)
    )


@pytest.mark.parametrize("name", list(SPECS))
def test_an_answer_is_as_long_as_is_allowed(
    benches: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bench = benches("mistral")
    monkeypatch.setattr(bench.model.generation_config, "eos_token_id", None)
    for longest in (1, 4):
        spec = make_spec(name, None, {"max_new_tokens": longest})
        assert decode(bench.model, bench.inputs(0, 3), spec).shape == (2, longest)
