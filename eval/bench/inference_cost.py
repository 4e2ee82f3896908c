"""Measure the cost of MedAlign at inference: the same weights with and without the rotation."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record, Turn
from ...trainer.data.batch import collate
from ...trainer.data.dataset import Conversations
from ...trainer.export.merge import merge
from ...trainer.machine import peak_bytes
from ...trainer.student import llava_of
from ...trainer.students.probe import attach, without_rotation
from ...trainer.students.spec import positions_of
from ..source import Source, find_source

QUESTION = "Describe the findings in this image."

FEW: Final = 5
"""Fewer values have no quartiles worth the name."""

Say = Callable[[str], None]
"""Called with a line about progress."""

_CLEAR: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")


class BenchError(ValueError):
    """The measurement cannot be made as planned."""


@dataclass(frozen=True, slots=True, eq=False)
class BenchPrompt:
    """One prompt, as the model takes it.

    Attributes:
        inputs: tensors by name, batch of one.
        tokens: of the prompt, image tokens counted.
        visual: image tokens.
    """

    inputs: dict[str, Tensor]
    tokens: int
    visual: int


@dataclass(frozen=True, slots=True)
class Timing:
    """One answer.

    Attributes:
        prefill_ms: until the first token: image, prompt and one choice.
        token_ms: mean of every further token.
        new_tokens: that were generated.
        peak_bytes: most memory meanwhile, weights included.
    """

    prefill_ms: float
    token_ms: float
    new_tokens: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """Prompts, answers and repetitions of a measurement.

    Attributes:
        images: one prompt each, taken in turns; none takes the packaged sample's.
        question: the same about each image.
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
    """All variants, with device and prompts.

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


def bench_inference(student: Path, run: Path | None, plan: BenchPlan, say: Say) -> Report:
    """Measure a student, and a run's model unmerged and merged, each with and without rotation.

    One model is in memory at a time. Without a run, W is random: its values cost nothing.

    Args:
        student: folder of the base model.
        run: run or adapter folder of that student, or None.
        plan: how to measure.
        say: called with a line about progress.

    Raises:
        BenchError: too few tokens or repetitions, more tokens than the student has positions, or
            an image cannot be read.
        StudentError: no student, or the run is another student's.
    """
    if plan.tokens < 2 or plan.repeats < 1:
        raise BenchError("measuring takes at least 2 tokens and 1 repetition")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = find_source(student)
    if base.adapter is not None:
        raise BenchError(f"{student} is no student but a run or an adapter; give it second")
    trained = None if run is None else find_source(run, student)
    if trained is not None and trained.unfinished:
        say(trained.unfinished)
    images = list(plan.images) or sample_images()
    prompts: list[BenchPrompt] = []
    variants: list[Measured] = []
    layer = None
    for name, model in _models(base, trained, device):
        if not prompts:
            images = images[: plan.warmups + plan.repeats]
            prompts = bench_prompts(trained or base, model.config, images, plan.question, device)
            _check_room(prompts, plan.tokens, positions_of(model.config.text_config))
        layer = _rotated_layer(model)
        say(f"measuring {name}")
        variants += _measured(name, model, prompts, plan, rotated=layer is not None)
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


def sample_images() -> list[Path]:
    """Return the images of the packaged sample."""
    folder = resources.files(__package__.partition(".")[0]) / "demo" / "sample" / "images"
    return sorted(Path(str(path)) for path in folder.iterdir())


def bench_prompts(
    source: Source, config: object, images: Sequence[Path], question: str, device: torch.device
) -> list[BenchPrompt]:
    """Make one prompt per image, on the device.

    Args:
        source: whose processor, template and geometry are used.
        config: of the loaded model.
        images: at least one file.
        question: the same about each.
        device: where the tensors go.

    Raises:
        BenchError: an image cannot be read.
    """
    student = source.spec()
    prompts = []
    for path in images:
        turn = Turn("human", f"{IMAGE_PLACEHOLDER}\n{question}")
        record = Record(
            id=path.name,
            images=(path.name,),
            conversations=(turn,),
            answer_type=None,
            fields={},
            line=0,
        )
        samples = Conversations(
            [record], path.absolute().parent, student, 0, None, ask=True, alpha=source.alpha
        )
        batch = collate([samples[0]], 0, left=True).to(device, source.dtype(device))
        if batch.skipped or batch.pixel_values is None:
            raise BenchError("; ".join(reason for _, reason in batch.skipped))
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "pixel_values": batch.pixel_values,
            **student.family.inputs(config, batch.input_ids, batch.grids),
        }
        visual = int((batch.input_ids == student.encoder.image_token_id).sum())
        prompts.append(BenchPrompt(inputs, batch.tokens, visual))
    return prompts


@torch.no_grad()
def time_answer(model: Any, prompt: BenchPrompt, tokens: int) -> Timing:
    """Generate exactly `tokens` tokens greedily, and time them.

    Args:
        model: the Hugging Face model.
        prompt: a batch of one.
        tokens: at least two.
    """
    device = prompt.inputs["input_ids"].device
    make: Any = GenerationConfig
    # Without an end token every answer has the same length; transformers would take the model's.
    own, model.generation_config = model.generation_config, make(pad_token_id=0)
    config = make(do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    arrivals = _Arrivals()
    begin_peak(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    try:
        model.generate(**prompt.inputs, generation_config=config, streamer=arrivals)
    finally:
        model.generation_config = own
    first, *others = arrivals.times
    return Timing(
        prefill_ms=1e3 * (first - begun),
        token_ms=1e3 * (others[-1] - first) / len(others),
        new_tokens=len(arrivals.times),
        peak_bytes=peak_since(device),
    )


def begin_peak(device: torch.device) -> None:
    """Forget earlier peaks, where the system can: elsewhere a peak is the process's own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return


def peak_since(device: torch.device) -> int:
    """Most bytes since `begin_peak`: allocated on the GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return peak_bytes()
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peaks[0]) * 1024 if peaks else peak_bytes()


def _check_room(prompts: Sequence[BenchPrompt], tokens: int, positions: int | None) -> None:
    longest = max(prompt.tokens for prompt in prompts)
    if positions is not None and longest + tokens > positions:
        raise BenchError(
            f"a prompt of {longest} tokens and an answer of {tokens} (--tokens) do not fit the "
            f"student's {positions} positions"
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
    name: str, model: Any, prompts: Sequence[BenchPrompt], plan: BenchPlan, *, rotated: bool
) -> list[Measured]:
    variants = []
    for rotation in (True, False) if rotated else (False,):
        with nullcontext() if rotation else without_rotation(model):
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
        variants.append(Measured(name, rotation, weights))
    for turn in range(-plan.warmups, plan.repeats):
        # The first variant alternates, so that neither always follows the other.
        for variant in variants if turn % 2 == 0 else reversed(variants):
            with nullcontext() if variant.rotation else without_rotation(model):
                timing = time_answer(model, prompts[turn % len(prompts)], plan.tokens)
            if turn >= 0:
                # W lies in memory while it is set aside.
                aside = variants[0].weight_bytes - variant.weight_bytes
                peak = timing.peak_bytes - aside
                variant.timings.append(replace(timing, peak_bytes=peak))
    return variants


def _rotated_layer(model: Any) -> int | None:
    for name, _ in model.named_modules():
        head, dot, leaf = name.rpartition(".")
        if dot and leaf == "visual_rotation":
            return int(head.rpartition(".")[2])
    return None


class _Arrivals:
    """Notes when tokens arrive; generate gives a streamer every token once it is on the CPU."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._has_prompt = False

    def put(self, _tokens: Tensor) -> None:
        """Note the time; the first call brings the prompt."""
        if self._has_prompt:
            self.times.append(time.perf_counter())
        self._has_prompt = True

    def end(self) -> None:
        """Do nothing; no token waits here."""
