"""Students in bfloat16: what decides a token, and VCD's noise, stay in float32."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from medalign.eval.decoders import SPECS, decode, make_spec, opera, vcd
from medalign.eval.decoders import call as finite


@pytest.fixture(scope="module")
def narrow(benches: Any) -> Any:
    """The Mistral student in bfloat16."""
    bench = benches("mistral")
    return replace(bench, model=copy.deepcopy(bench.model).to(torch.bfloat16))


@pytest.mark.parametrize("name", list(SPECS))
def test_every_softmax_that_decides_is_in_float32(
    narrow: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    softmax: list[torch.dtype] = []
    chosen_by: list[torch.dtype] = []

    def watch(method: str) -> None:
        plain = getattr(Tensor, method)

        def seen(scores: Tensor, *given: Any, **more: Any) -> Any:
            softmax.append(scores.dtype)
            return plain(scores, *given, **more)

        monkeypatch.setattr(Tensor, method, seen)

    def keep(scores: Tensor, _decoder: str) -> None:
        chosen_by.append(scores.dtype)

    watch("softmax")
    watch("log_softmax")
    monkeypatch.setattr(finite, "refuse_no_numbers", keep)
    monkeypatch.setattr(opera, "refuse_no_numbers", keep)
    decode(narrow.model, narrow.inputs(0, 1), make_spec(name, None, {"max_new_tokens": 3}))
    assert set(chosen_by) == {torch.float32}
    assert set(softmax) == (set() if name == "greedy" else {torch.float32})


def test_noise_is_added_to_pixels_before_they_are_cast(
    narrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []
    plain = vcd.noised_images

    def watch(pixels: Tensor, *settings: Any) -> Tensor:
        given.append(pixels)
        noised: Tensor = plain(pixels, *settings)
        return noised

    monkeypatch.setattr(vcd, "noised_images", watch)
    decode(narrow.model, narrow.inputs(0, 1), make_spec("vcd", None, {"max_new_tokens": 1}))
    assert torch.equal(given[0], narrow.pixels[:2])
    assert not torch.equal(given[0], given[0].to(torch.bfloat16).float())
