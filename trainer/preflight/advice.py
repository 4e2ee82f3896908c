"""Which recipe keys make a run smaller, and by how much."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..memory import Load, Memory, Parameters, Settings, Shape, estimate
from ..recipe.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What decides the memory of a run."""

    parameters: Parameters
    shape: Shape
    load: Load
    chosen: Settings

    @property
    def memory(self) -> Memory:
        """Peak of one rank, by formula."""
        return estimate(self.parameters, self.shape, self.load, self.chosen)


Branch = list[tuple[str, Case]]
"""Changes of one kind, from mild to strong, with the case that each makes."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A change of the recipe.

    Attributes:
        change: the keys and their values.
        peak: bytes of one rank after it.
        fits: whether that is within the device.
    """

    change: str
    peak: int
    fits: bool


def advise(recipe: Recipe, case: Case, peak: int, device_bytes: int) -> tuple[Advice, ...]:
    """Say what a recipe could change, the smallest run last.

    Args:
        recipe: of the run.
        case: as the recipe is.
        peak: bytes of one rank as it is; where it was measured, the formula's differences are
            added to the measurement.
        device_bytes: of the device.
    """
    base = case.memory.total
    advice = []
    for branch in _branches(recipe, case):
        steps = [
            Advice(change, after, after <= device_bytes)
            for change, changed in branch
            if (after := peak + changed.memory.total - base) < peak
        ]
        # The mildest change of its kind that suffices, or else the strongest.
        advice += [step for step in steps if step.fits][:1] or steps[-1:]
    return tuple(sorted(advice, key=lambda step: -step.peak))


def _branches(recipe: Recipe, case: Case) -> Iterator[Branch]:
    """Kinds of changes, each from mild to strong."""
    chosen = case.chosen
    yield _batches(recipe, case, "")
    if not chosen.checkpointing:
        checkpointed = replace(case, chosen=replace(chosen, checkpointing=True))
        key = "student.gradient_checkpointing: true"
        yield [(key, checkpointed), *_batches(recipe, checkpointed, f"{key}, ")]
    if recipe.deepspeed.config is None and chosen.offload == "none" and chosen.stage:
        offloaded = replace(case, chosen=replace(chosen, offload="optimizer"))
        yield [("deepspeed.offload: optimizer", offloaded)]
    if not chosen.quantized and chosen.stage < 3:
        quantised = replace(case, chosen=replace(chosen, quantized=True))
        yield [("student.quantize: nf4", quantised)]
    if chosen.world > 1 and chosen.stage < 3 and not chosen.quantized:
        yield [("deepspeed.stage: 3", replace(case, chosen=replace(chosen, stage=3)))]


def _batches(recipe: Recipe, case: Case, before: str) -> Branch:
    """Halve the batch as often as it goes; the step's conversations stay the same."""
    size, accumulation = recipe.data.batch_size, recipe.data.micro_steps
    branch, smaller = [], size
    while smaller % 2 == 0:
        smaller //= 2
        change = f"data.batch_size: {smaller}, data.accumulation: {accumulation * size // smaller}"
        branch.append((f"{before}{change}", replace(case, load=scaled(case.load, smaller))))
    return branch


def scaled(load: Load, batch: int) -> Load:
    """The load of another number of conversations, each as before."""
    share = batch / load.batch
    return replace(
        load,
        batch=batch,
        images=round(load.images * share),
        answers=round(load.answers * share),
        teacher_bytes=round(load.teacher_bytes * share),
        padded=load.padded and batch > 1,
    )
