"""Tiny students with weights large enough that the most likely token is not always the same."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from medalign.eval.decoders.call import Call
from medalign.eval.decoders.prompts import Prompt
from medalign.trainer.machine import quiet_libraries
from medalign.trainer.student import load_base
from medalign.trainer.students.probe import attach
from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

PATCHES = 16

Inputs = dict[str, Tensor | None]


@dataclass
class Bench:
    """A student, and prompts for it.

    Attributes:
        model: six layers, random, with a rotation at layer 2 where the fixture says so.
        rows: prompts as lists of tokens; the last one has no image.
        pixels: of the other prompts.
    """

    model: Any
    rows: list[list[int]]
    pixels: Tensor

    def inputs(self, *picked: int) -> Inputs:
        rows = [self.rows[k] for k in picked]
        longest = max(map(len, rows))
        images = [k for k in picked if k < len(self.pixels)]
        return {
            "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor(
                [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
            ),
            "pixel_values": self.pixels[images] if images else None,
        }

    def call(self, *picked: int) -> Call:
        inputs = self.inputs(*picked)
        prompt = Prompt.of(inputs, self.model.config.image_token_id)
        names = [f"r{k}" for k in picked]
        return Call(model=self.model, prompt=prompt, inputs=inputs, ids=names, seed=0)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models suffer from threads that wait for each other."""
    quiet_libraries()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bench]:
    """Make a student once for the session; `adapter` leaves the rotation to an adapter."""
    made: dict[tuple[str, bool], Bench] = {}

    def make(text_model: Any, *, adapter: bool = False) -> Bench:
        key = (text_model, adapter)
        if key not in made:
            folder = tmp_path_factory.mktemp("student")
            sizes = TinyStudent(
                text_model=text_model,
                image_size=56,
                width=32,
                layers=6,
                vocabulary=300,
                spread=0.25,
            )
            make_student(folder, DEMO_TEXTS, sizes)
            model = load_base(folder, torch.float32)
            made[key] = _bench(model, rotated=not adapter)
        return made[key]

    return make


def _bench(model: Any, *, rotated: bool) -> Bench:
    generator = torch.Generator().manual_seed(0)
    if rotated:
        attach(model, 2, probe=False)
        weight = model.model.language_model.layers[2].visual_rotation.weight
        with torch.no_grad():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    image = [model.config.image_token_id] * PATCHES
    rows = [
        [1, 10, 20, *image, 30, 31, 32],
        [1, 11, *image, 40, 41, 42, 43, 44, 45],
        [1, *image, 50],
        [1, 60, 61, 62],
    ]
    return Bench(model, rows, torch.randn(3, 3, 56, 56, generator=generator))


@pytest.fixture(params=["mistral", "qwen2"])
def bench(request: pytest.FixtureRequest, benches: Callable[..., Bench]) -> Bench:
    """A Mistral and a Qwen2 student with an active rotation."""
    return benches(request.param)


@pytest.fixture
def eager() -> Callable[[Any, str], AbstractContextManager[None]]:
    """Let one half of a model run eager attention, which alone can show what it attends to."""

    @contextmanager
    def switch(model: Any, half: str) -> Iterator[None]:
        model.set_attn_implementation({half: "eager"})
        try:
            yield
        finally:
            model.set_attn_implementation({half: "sdpa"})

    return switch
