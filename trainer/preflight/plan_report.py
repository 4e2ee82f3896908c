"""A plan in words for people, and as JSON for programs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ..machine import counted, of_bytes, of_seconds
from ..memory import PEAK_OPERATIONS, UTILISATION, Memory
from .train_plan import GPU_BYTES, GPU_RANKS, Plan

_PARTS = {
    "frozen": "frozen weights",
    "trained": "trained weights",
    "gradients": "gradients",
    "optimiser": "optimiser",
    "activations": "activations",
    "teacher": "teacher batch",
    "rest": "the rest",
}
_HOW = (
    "parameters counted on the model's own shapes, without its weights; activations by the "
    "formulas of trainer/memory.py"
)


def plan_lines(plan: Plan) -> Iterator[str]:
    """Say everything, line by line."""
    yield from _what(plan)
    if plan.measured is not None:
        yield from _measured(plan)
    else:
        yield f"not measured: {plan.not_measured}"
    if plan.gpu_seconds is not None:
        yield from _estimated(plan, plan.gpu_seconds)
    yield from _stages(plan)
    yield from _disk(plan)
    yield from _warnings(plan)


def plan_json(plan: Plan) -> dict[str, Any]:
    """Everything as numbers: bytes, seconds, hours."""
    measured = plan.measured
    return {
        "device": {"name": plan.device, "gpu_bytes": plan.gpu_bytes},
        "parameters": asdict(plan.case.parameters),
        "batch": asdict(plan.case.load),
        "lengths": {
            "of": plan.lengths.of,
            "scanned": plan.lengths.scanned,
            "cut": plan.lengths.cut,
            "too_long": len(plan.lengths.too_long),
            "unusable": len(plan.lengths.unusable),
        },
        "run": {**asdict(plan.run), **_hours(plan)},
        "measured": None
        if measured is None
        else {
            "memory": _memory(measured.memory),
            "taken_bytes": measured.taken,
            "before_bytes": measured.before,
            "device_bytes": measured.device_bytes,
            "share": measured.taken / measured.device_bytes,
            "seconds": {**asdict(measured.seconds), "step": measured.seconds.step},
            "samples_per_second": plan.run.per_step / measured.seconds.step,
        },
        "not_measured": plan.not_measured or None,
        "estimate": {
            "how": _HOW,
            "memory": _memory(plan.case.memory),
            "share": plan.case.memory.total / plan.gpu_bytes,
            "step_seconds": plan.gpu_seconds,
        },
        "zero": {
            "ranks": GPU_RANKS,
            "gpu_bytes": GPU_BYTES,
            "stages": {str(stage): _memory(m) for stage, m in plan.stages.items()},
        },
        "disk": asdict(plan.disk),
        "fits": plan.fits,
        "advice": [asdict(advice) for advice in plan.advice],
    }


def _memory(memory: Memory) -> dict[str, int]:
    return {**asdict(memory), "total": memory.total}


def _hours(plan: Plan) -> dict[str, float | None]:
    here = None if plan.measured is None else plan.measured.seconds.step
    return {
        "hours": None if here is None else plan.run.steps * here / 3600,
        "hours_by_formula": None
        if plan.gpu_seconds is None
        else plan.run.steps * plan.gpu_seconds / 3600,
    }


def _what(plan: Plan) -> Iterator[str]:
    p, load = plan.case.parameters, plan.case.load
    yield (
        f"parameters   {p.frozen + p.trained:,}; trained {p.trained:,}: LoRA {p.lora:,}, "
        f"projector {p.projector:,}, W {p.rotation:,}"
    )
    scanned = "" if plan.lengths.scanned == plan.lengths.of else f" ({plan.lengths.scanned:,} seen)"
    yield (
        f"micro-batch  {counted(load.batch, 'conversation')} of {load.tokens:,} tokens, "
        f"{counted(load.images, 'image')}: the longest of {plan.lengths.of:,}{scanned}"
    )
    yield (
        f"run          {counted(plan.run.steps, 'step')} of {plan.run.per_step:,} conversations "
        f"on {counted(plan.run.world, 'rank')}"
    )


def _measured(plan: Plan) -> Iterator[str]:
    measured = plan.measured
    assert measured is not None
    yield f"\nmeasured on {plan.device}"
    yield from _parts(measured.memory, measured.taken, measured.device_bytes)
    if measured.before:
        size = of_bytes(measured.before)
        yield f"  of the rest, {size} is Python with its libraries, before the student was loaded"
    seconds = measured.seconds
    yield (
        f"  a step     {of_seconds(seconds.step)}: data wait {of_seconds(seconds.data_wait)}, "
        f"forward and backward {of_seconds(seconds.passes)}, update {of_seconds(seconds.update)}"
    )
    yield (
        f"  the run    {of_seconds(seconds.step * plan.run.steps)}, "
        f"{plan.run.per_step / seconds.step:.1f} samples/s"
    )
    if measured.skipped:
        record, reason = measured.skipped[0]
        number = counted(len(measured.skipped), "conversation")
        yield f"  {number} could not be read, first {record!r}: {reason}"


def _estimated(plan: Plan, seconds: float) -> Iterator[str]:
    size = of_bytes(plan.gpu_bytes)
    number = "bf16" if plan.case.chosen.number_bytes == 2 else "fp32"
    yield f"\nestimate for a GPU of {size} in {number}, nothing measured: {_HOW}"
    yield from _parts(plan.case.memory, plan.case.memory.total, plan.gpu_bytes)
    yield (
        f"  a step     {of_seconds(seconds)} if an H100 reaches {UTILISATION:.0%} of its "
        f"{PEAK_OPERATIONS / 1e12:.0f} TFLOP/s; the run {of_seconds(seconds * plan.run.steps)}"
    )


def _parts(memory: Memory, taken: int, whole: int) -> Iterator[str]:
    for name, words in _PARTS.items():
        yield f"  {words:<15}  {of_bytes(getattr(memory, name)):>9}"
    yield f"  {'peak':<15}  {of_bytes(taken):>9}, {taken / whole:.0%} of {of_bytes(whole)}"


def _stages(plan: Plan) -> Iterator[str]:
    size = of_bytes(GPU_BYTES)
    yield f"\nby formula, one of {GPU_RANKS} GPUs of {size}, each with this micro-batch"
    yield "  ZeRO    weights  gradients  optimiser       rest       peak"
    for stage, memory in plan.stages.items():
        others = memory.activations + memory.teacher + memory.rest
        weights = memory.frozen + memory.trained
        cells = (weights, memory.gradients, memory.optimiser, others, memory.total)
        row = "  ".join(f"{of_bytes(cell):>9}" for cell in cells)
        yield f"  {stage:<4}  {row}{'' if memory.total <= GPU_BYTES else '  does not fit'}"


def _disk(plan: Plan) -> Iterator[str]:
    disk = plan.disk
    yield (
        f"\ndisk         {of_bytes(disk.checkpoint)} a checkpoint, {of_bytes(disk.most)} at most "
        f"in the run folder; {of_bytes(disk.free)} free"
    )


def _warnings(plan: Plan) -> Iterator[str]:
    if plan.disk.most > plan.disk.free:
        yield "warning: the checkpoints do not fit the disk of --out; lower run.keep"
    too_long, unusable = len(plan.lengths.too_long), len(plan.lengths.unusable)
    if too_long + unusable:
        yield (
            f"warning: {counted(too_long + unusable, 'conversation')} cannot be used, {too_long} "
            "of them too long for data.max_length; medalign doctor names them"
        )
    if plan.fits:
        return
    how = "measured" if plan.gpu_seconds is None else "estimated"
    yield (
        f"warning: does not fit: {of_bytes(plan.peak)} {how}, the device has "
        f"{of_bytes(plan.gpu_bytes)}; what would help:"
    )
    for advice in plan.advice:
        yield (
            f"  {advice.change}: {of_bytes(advice.peak)}{'' if advice.fits else ', still too much'}"
        )
