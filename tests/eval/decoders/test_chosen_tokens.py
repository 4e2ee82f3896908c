"""Which image tokens AVISC hides and DAMRO shows, against eager attention and plain arithmetic."""

from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from medalign.eval.decoders import decode, make_spec
from medalign.eval.decoders.prompts import Embedded
from medalign.eval.decoders.streams import ContrastStream

Eager = Callable[[Any, str], Any]


@pytest.fixture
def contrast(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Embedded]:
    """The other prompt of a decoder."""
    made: list[Embedded] = []
    begin = ContrastStream.__init__

    def watch(self: ContrastStream, model: Any, prompt: Embedded, begins: int) -> None:
        begin(self, model, prompt, begins)
        made.append(prompt)

    monkeypatch.setattr(ContrastStream, "__init__", watch)

    def make(name: str, *picked: int, **settings: Any) -> Embedded:
        spec = make_spec(name, None, {"max_new_tokens": 1, **settings})
        decode(bench.model, bench.inputs(*picked), spec)
        return made[-1]

    return make


def blind(layers: list[list[float]], gamma: float, lambda_: float) -> list[bool]:
    """Of each image token, from the attention to it in every layer."""
    masses = [sum(row) for row in layers]
    order = sorted(range(len(layers)), key=lambda k: -masses[k])
    read, share = [order[0]], masses[order[0]] / sum(masses)
    for k in order[1:]:
        if share >= gamma:
            break
        read.append(k)
        share += masses[k] / sum(masses)
    means = [mean(column) for column in zip(*(layers[k] for k in read), strict=True)]
    return [value >= mean(means) + lambda_ * stdev(means) for value in means]


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.5, 1.0), (0.9, 0.3)])
def test_avisc_hides_what_draws_little_attention(
    bench: Any, eager: Eager, contrast: Callable[..., Embedded], gamma: float, lambda_: float
) -> None:
    prompt = contrast("avisc", 0, 1, 2, gamma=gamma, **{"lambda": lambda_})
    with torch.no_grad(), eager(bench.model, "text_config"):
        maps = bench.model(**bench.inputs(0, 1, 2), output_attentions=True).attentions
    for k, visual in enumerate(prompt.visual):
        layers = [one[k, :, -1, visual].double().mean(0).tolist() for one in maps]
        hidden = (prompt.embeds[k, visual] == 0).all(-1)
        assert (~hidden).tolist() == blind(layers, gamma, lambda_)


@pytest.mark.parametrize("mode", ["zero", "drop"])
def test_damro_shows_each_images_own_patches_in_their_order(
    bench: Any, eager: Eager, contrast: Callable[..., Embedded], mode: str
) -> None:
    picked = (0, 1, 2)
    prompt = contrast("damro", *picked, top_tokens=4, mode=mode)
    pixels = bench.pixels[list(picked)]
    with torch.no_grad(), eager(bench.model, "vision_config"):
        maps = bench.model.model.vision_tower(pixels, output_attentions=True).attentions
        features = bench.model.get_image_features(pixel_values=pixels).pooler_output
    for k, own in enumerate(maps[-1].double().mean(1)[:, 0, 1:]):
        best = own.argsort(descending=True)[:4]
        shown: Tensor = prompt.embeds[k, prompt.visual[k]]
        if mode == "zero":
            best = best.sort().values
            assert (shown != 0).any(-1).nonzero()[:, 0].tolist() == best.tolist()
            shown = shown[best]
        assert torch.allclose(shown, features[k][best], atol=1e-5)
