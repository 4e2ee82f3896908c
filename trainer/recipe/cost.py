"""What reproducing a row takes, by formula: hours, memory and disk before anything is downloaded.

Nothing here is measured on a GPU. `medalign train --plan` measures real steps of the run itself,
once data, cache and student are there.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ..machine import of_bytes, of_seconds
from ..memory import (
    Load,
    Parameters,
    Settings,
    Shape,
    checkpoint_bytes,
    estimate,
    gpu_seconds,
    step_operations,
)
from .compose import RecipeError, find_recipe, shipped_recipes
from .paper import PaperSection
from .recipe import Recipe, for_ranks

STUDENTS: Final = {
    "llava-med": Shape(
        layers=32,
        width=4096,
        inner=14336,
        query_width=4096,
        key_width=1024,
        heads=32,
        vocabulary=32000,
        tower_width=1024,
    ),
    "huatuo-vision": Shape(
        layers=28,
        width=3584,
        inner=18944,
        query_width=3584,
        key_width=512,
        heads=28,
        vocabulary=152064,
        tower_width=1024,
    ),
}
"""Sizes of Mistral-7B and Qwen2-7B, by their published configurations."""
TOWER: Final = 303_507_456
"""Parameters of the students' vision tower, CLIP ViT-L/14 at 336 pixels."""
VISUAL: Final = 576
"""Visual tokens of an image: 24 x 24."""
TEXT: Final = {"vqa": 80, "report": 200}
"""Tokens of a conversation beside the image; an assumption."""
ANSWER: Final = {"vqa": 6, "report": 80}
"""Tokens of an answer; an assumption."""
EXPERTS: Final = {
    "unimed-l": (1024, 303_507_456 * 577, 61_700),
    "unimed-b": (768, 85_800_000 * 197, 9_700),
    "biomedclip": (768, 85_800_000 * 197, 9_700),
}
"""By expert: width of a patch, parameters times tokens of a forward pass, and bytes of a row with
codec gram as `benchmarks/gram.py` measured them on DINOv2 features, where no CLIP was at hand."""
DECODING: Final = {"mimic-cxr-report": 0.080}
"""Core seconds to read an image where it is large: 2544 x 3056 (`benchmarks/content.py`)."""
DECODE: Final = 2 / 157
"""Core seconds to decode other images: 157 a second on two cores (`benchmarks/build.py`)."""
WORKERS: Final = 8
"""Processes that decode while the cache is built: the most that `cache build` takes by itself."""
BANDWIDTH: Final = 3.35e12
"""Bytes a second that an H100 SXM reads, by its data sheet."""
READ_SHARE: Final = 0.5
"""Share of it that decoding is assumed to reach."""
QUESTIONS: Final = 8
"""Questions answered at a time: the default of `eval generate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one row takes.

    Attributes:
        conversations, images: to train on, and in the cache.
        steps: updates.
        cache_fp16, cache_gram: bytes of the cache with each codec.
        cache_seconds, train_seconds, answer_seconds: of an expert's pass, of training, and of one
            decoder's answers on one GPU; the last is None where the test split is not published.
        peak: bytes of one GPU while training.
        checkpoint, run: bytes of a checkpoint, and of the run folder at most.
        student: bytes of the converted student, which the original takes once more.
    """

    conversations: int
    images: int
    steps: int
    cache_fp16: int
    cache_gram: int
    cache_seconds: float
    train_seconds: float
    answer_seconds: float | None
    peak: int
    checkpoint: int
    run: int
    student: int


def check_layer(recipe: Recipe) -> None:
    """Insist on a layer that the paper's student has.

    Raises:
        RecipeError: it has fewer.
    """
    shape = STUDENTS.get(recipe.paper.student or "")
    if shape is not None and recipe.loss.layer >= shape.layers:
        raise RecipeError(
            f"loss.layer is {recipe.loss.layer}, but {recipe.paper.student} has layers "
            f"0 to {shape.layers - 1}"
        )


def cost(recipe: Recipe, gpus: int) -> Cost:
    """Compute what a recipe's row takes on a number of H100s.

    Raises:
        RecipeError: the recipe says nothing of its student, expert or counts, or cannot be trained.
    """
    paper, task = recipe.paper, recipe.paper.task
    expert = EXPERTS.get(recipe.expert.name or "")
    if not (paper.student and task and expert and paper.train_conversations and paper.train_images):
        raise RecipeError(
            "a cost needs paper.student, paper.task, paper.train_conversations, "
            f"paper.train_images and an expert among {', '.join(EXPERTS)}"
        )
    check_layer(recipe)
    recipe = for_ranks(recipe, gpus)
    shape = STUDENTS[paper.student]
    parameters = parameters_of(shape, TOWER, recipe)
    load, chosen = _load(recipe, task, expert[0]), _settings(recipe, gpus)
    micro = gpu_seconds(step_operations(parameters, load, chosen))
    steps = _steps(recipe, paper.train_conversations, gpus)
    checkpoint = checkpoint_bytes(parameters.trained, chosen.number_bytes)
    width, work, gram = expert
    rows = paper.train_images
    reading = DECODING.get(paper.data or "", DECODE) / WORKERS
    return Cost(
        conversations=paper.train_conversations,
        images=rows,
        steps=steps,
        cache_fp16=rows * (VISUAL * (2 * width + 4 + 1)),
        cache_gram=rows * (gram + VISUAL * (4 + 1)),
        cache_seconds=rows * max(reading, gpu_seconds(2 * work)),
        train_seconds=steps * recipe.data.micro_steps * micro,
        answer_seconds=_answer_seconds(paper, task, parameters),
        peak=estimate(parameters, shape, load, chosen).total,
        checkpoint=checkpoint,
        run=(recipe.run.keep + 1) * checkpoint + parameters.trained * chosen.number_bytes,
        student=(parameters.frozen - parameters.rotation) * 2,
    )


def parameters_of(shape: Shape, tower: int, recipe: Recipe) -> Parameters:
    """Count a Llava student's parameters from its sizes.

    Args:
        shape: of a Llama-like language model that does not share its embedding with its head.
        tower: parameters of the vision tower.
        recipe: that it is trained with.
    """
    c, m, q, k = shape.width, shape.inner, shape.query_width, shape.key_width
    linear = [(c, q), (c, k), (c, k), (q, c), (c, m), (c, m), (m, c)]
    weights = shape.layers * sum(a * b for a, b in linear)
    norms = shape.layers * shape.norms * c + c
    projector = shape.tower_width * c + c + c * c + c
    rotation = c * c * recipe.loss.rotation
    return Parameters(
        # PEFT keeps an untrained copy of the projector, which is the base's own, and of W.
        frozen=weights + norms + 2 * shape.vocabulary * c + tower + projector + rotation,
        linear=weights,
        lora=shape.layers * recipe.lora.rank * sum(a + b for a, b in linear),
        projector=projector,
        rotation=rotation,
    )


def _load(recipe: Recipe, task: str, expert_width: int) -> Load:
    batch = recipe.data.batch_size
    return Load(
        batch=batch,
        tokens=min(VISUAL + TEXT[task], recipe.data.max_length),
        images=batch,
        visual=VISUAL,
        answers=batch * ANSWER[task],
        question=TEXT[task] - ANSWER[task],
        teacher_bytes=batch * VISUAL * (2 * expert_width + 4 + 1),
        padded=batch > 1,
    )


def _settings(recipe: Recipe, gpus: int) -> Settings:
    return Settings(
        number_bytes=2,
        rank=recipe.lora.rank,
        dropout=recipe.lora.dropout > 0,
        checkpointing=recipe.student.gradient_checkpointing,
        flash=recipe.student.attention == "flash_attention_2",
        losses=True,
        rotation=recipe.loss.rotation,
        stage=recipe.deepspeed.stage,
        offload=recipe.deepspeed.offload,
        world=gpus,
        quantized=recipe.student.quantize != "none",
    )


def _steps(recipe: Recipe, conversations: int, gpus: int) -> int:
    if recipe.run.steps is not None:
        return recipe.run.steps
    per_step = recipe.data.batch_size * recipe.data.micro_steps * gpus
    return math.ceil((recipe.run.epochs or 0) * conversations / per_step)


def _answer_seconds(paper: PaperSection, task: str, parameters: Parameters) -> float | None:
    """Each token reads all weights once, for all questions of a batch; the prompt is one pass."""
    if paper.test_conversations is None:
        return None
    token = 2 * parameters.frozen / (READ_SHARE * BANDWIDTH)
    batches = math.ceil(paper.test_conversations / QUESTIONS)
    prompt = gpu_seconds(2 * parameters.frozen * (VISUAL + TEXT[task]))
    return batches * ANSWER[task] * token + paper.test_conversations * prompt


COMMAND: Final = "medalign recipes cost"
_GPUS: Final = (1, 8)
_HEAD: Final = (
    "recipe",
    "conversations",
    "steps",
    "images",
    "cache fp16",
    "cache gram",
    "expert",
    *(f"train, {n} GPU{'s' * (n > 1)}" for n in _GPUS),
    *(f"memory, {n}" for n in _GPUS),
    "answers",
    "checkpoint",
    "run folder",
    "student",
)


def paper_rows() -> list[str]:
    """Shipped recipes that reproduce a row of the paper."""
    return [name for name in shipped_recipes() if Recipe.of(find_recipe(name)).paper.data]


def cost_table(names: Iterable[str]) -> Iterator[str]:
    """Lines of the table, a row a recipe, aligned for a terminal.

    Raises:
        RecipeError: a recipe does not exist, or says too little.
    """
    rows = [_HEAD, *(_cells(name) for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = (
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    yield f"| {head} |"
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    yield from (f"| {line} |" for line in lines)


def _cells(name: str) -> tuple[str, ...]:
    recipe = Recipe.of(find_recipe(name))
    try:
        costs = [cost(recipe, gpus) for gpus in _GPUS]
    except RecipeError as error:
        raise RecipeError(f"recipe {name}: {error}") from error
    one = costs[0]
    return (
        name,
        f"{one.conversations:,}",
        f"{one.steps:,}",
        f"{one.images:,}",
        of_bytes(one.cache_fp16),
        of_bytes(one.cache_gram),
        of_seconds(one.cache_seconds),
        *(of_seconds(row.train_seconds) for row in costs),
        *(of_bytes(row.peak) for row in costs),
        "?" if one.answer_seconds is None else of_seconds(one.answer_seconds),
        of_bytes(one.checkpoint),
        of_bytes(one.run),
        of_bytes(one.student),
    )
