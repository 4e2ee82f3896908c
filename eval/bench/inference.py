"""What MedAlign costs at inference: the same weights with and without the rotation, in turns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ...trainer.export.merge import merge
from ...trainer.student import llava_of
from ...trainer.students.probe import attach, without_rotation
from ..source import Source, find_source
from .clock import Timing, time_answer
from .prompts import QUESTION, BenchError, BenchPrompt, bench_prompts, sample_images

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to measure.

    Attributes:
        images: one prompt each, taken in turns; none takes the packaged sample's.
        question: asked about each.
        tokens: length of every answer.
        repeats: counted answers of each variant.
        warmups: answers of each variant before, not counted.
    """

    images: Sequence[Path] = ()
    question: str = QUESTION
    tokens: int = 32
    repeats: int = 10
    warmups: int = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """One variant.

    Attributes:
        weights: `student`, `adapter` (LoRA beside the weights) or `merged`.
        rotation: whether the visual tokens are rotated.
        weight_bytes: of the model.
        timings: one per counted answer; the k-th of both variants have the same prompt.
    """

    weights: str
    rotation: bool
    weight_bytes: int
    timings: list[Timing] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """All variants, and what they were measured on.

    Attributes:
        device: type and name.
        dtype: of the weights.
        layer: that the run rotates, from 0, or without a run the student; None if it rotates none.
        prompt_tokens: fewest and most of a prompt, image tokens counted.
        visual_tokens: fewest and most of an image.
        variants: pairs follow each other, with the rotation first.
    """

    device: torch.device
    dtype: torch.dtype
    layer: int | None
    prompt_tokens: tuple[int, int]
    visual_tokens: tuple[int, int]
    variants: Sequence[Measured]


FEW: Final = 5
"""Fewer values have no quartiles worth the name."""


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile: on a shared machine the extremes are other programs'.

    Of fewer than `FEW` values, the least and the most stand in the place of the quartiles.
    """
    edges = (25, 50, 75) if len(values) >= FEW else (0, 50, 100)
    low, middle, high = np.percentile(values, edges).tolist()
    return middle, low, high


def overheads(with_: Measured, without: Measured, name: str) -> tuple[float, float, float]:
    """Median and `spread` of (with / without - 1) over the repetitions, as a share.

    Args:
        with_: the variant with the rotation.
        without: the one without it.
        name: `prefill_ms` or `token_ms`.
    """
    pairs = zip(with_.timings, without.timings, strict=True)
    return spread([getattr(a, name) / getattr(b, name) - 1 for a, b in pairs])


def bench_inference(student: Path, run: Path | None, wanted: Wanted, say: Say) -> Report:
    """Measure a student, and a run's model unmerged and merged, each with and without rotation.

    One model is in memory at a time. Without a run, W is random: its values cost nothing.

    Args:
        student: folder of the base model.
        run: run or adapter folder of that student, or None.
        wanted: how to measure.
        say: told what is being measured.

    Raises:
        BenchError: too few tokens or repetitions, or an image cannot be read.
        StudentError: no student, or the run is another student's.
    """
    if wanted.tokens < 2 or wanted.repeats < 1:
        raise BenchError("measuring takes at least 2 tokens and 1 repetition")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = find_source(student)
    if base.adapter is not None:
        raise BenchError(f"{student} is no student but a run or an adapter; give it second")
    trained = None if run is None else find_source(run, student)
    if trained is not None and trained.unfinished:
        say(trained.unfinished)
    images = list(wanted.images) or sample_images()
    prompts: list[BenchPrompt] = []
    variants: list[Measured] = []
    layer = None
    for name, model in _models(base, trained, device):
        if not prompts:
            asked = images[: wanted.warmups + wanted.repeats]
            prompts = bench_prompts(trained or base, model.config, asked, wanted.question, device)
        layer = _rotated_layer(model)
        say(f"measuring {name}")
        variants += _measured(name, model, prompts, wanted, rotated=layer is not None)
        del model  # before the next one is loaded
    tokens, visual = [p.tokens for p in prompts], [p.visual for p in prompts]
    return Report(
        device=device,
        dtype=Source.dtype(device),
        layer=layer,
        prompt_tokens=(min(tokens), max(tokens)),
        visual_tokens=(min(visual), max(visual)),
        variants=variants,
    )


def _models(
    base: Source, trained: Source | None, device: torch.device
) -> Iterator[tuple[str, Any]]:
    """Name and model of each pair; the caller lets one go before it asks for the next."""
    yield "student", _rotated(base.load(device))
    if trained is None:
        return
    student = trained.load(device)
    yield "adapter", llava_of(student)
    yield "merged", merge(student, Source.dtype(device))[0]  # in place


def _rotated(model: Any) -> Any:
    """Give a student a random W in its middle layer; which layer it is costs nothing."""
    attach(model, model.config.text_config.num_hidden_layers // 2, probe=False)
    for name, parameter in model.named_parameters():
        if name.endswith("visual_rotation.weight"):
            torch.nn.init.normal_(parameter, std=0.01)
    return model


def _measured(
    name: str, model: Any, prompts: Sequence[BenchPrompt], wanted: Wanted, *, rotated: bool
) -> list[Measured]:
    found = []
    for rotation in (True, False) if rotated else (False,):
        with nullcontext() if rotation else without_rotation(model):
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
        found.append(Measured(name, rotation, weights))
    for turn in range(-wanted.warmups, wanted.repeats):
        # The one that begins changes, so that neither always follows the other.
        for variant in found if turn % 2 == 0 else reversed(found):
            with nullcontext() if variant.rotation else without_rotation(model):
                timing = time_answer(model, prompts[turn % len(prompts)], wanted.tokens)
            if turn >= 0:
                # W lies in memory while it is set aside.
                aside = found[0].weight_bytes - variant.weight_bytes
                peak = timing.peak_bytes - aside
                variant.timings.append(replace(timing, peak_bytes=peak))
    return found


def _rotated_layer(model: Any) -> int | None:
    for name, _ in model.named_modules():
        head, dot, leaf = name.rpartition(".")
        if dot and leaf == "visual_rotation":
            return int(head.rpartition(".")[2])
    return None
