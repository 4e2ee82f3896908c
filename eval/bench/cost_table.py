"""Print the result of `medalign bench inference`: a table, or JSON."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any, Final

import torch

from .inference_cost import FEW, Measured, Report, overheads, spread

_PACKAGES: Final = ("medalign", "torch", "transformers", "peft")
_LABEL: Final = {"student": "student", "adapter": "adapter, LoRA unmerged", "merged": "merged"}


def facts(report: Report) -> dict[str, Any]:
    """Return device, dtype, threads, versions and sizes: all that the numbers depend on."""
    name = platform.processor() or platform.machine()
    if report.device.type == "cuda":
        name = torch.cuda.get_device_name(report.device)
    return {
        "device": f"{report.device.type} ({name})",
        "dtype": str(report.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in _PACKAGES},
        "rotated_layer": report.layer,
        "prompt_tokens": list(report.prompt_tokens),
        "visual_tokens": list(report.visual_tokens),
        "memory": "allocated" if report.device.type == "cuda" else "resident",
    }


def as_json(report: Report) -> dict[str, Any]:
    """Return every measurement, every repetition by itself."""
    pairs = {with_.weights: _overhead(with_, without) for with_, without in _pairs(report)}
    variants = [asdict(variant) for variant in report.variants]
    repeats = len(report.variants[0].timings)
    return {
        **facts(report),
        "variants": variants,
        "overhead_of_rotation": pairs,
        "spread": "quartiles" if repeats >= FEW else "range",
    }


def as_table(report: Report) -> str:
    """Return a Markdown table of medians and spreads, and one line about each pair."""
    about = facts(report)
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    tokens = report.variants[0].timings[0].new_tokens
    repeats = len(report.variants[0].timings)
    lines = [
        f"{about['device']}, {about['dtype']}, {about['threads']} threads; {versions}",
        f"prompts of {_span(report.prompt_tokens)} tokens, {_span(report.visual_tokens)} of them "
        f"visual; answers of {tokens} tokens; {_brackets(repeats)}",
        "",
        "| weights | rotation | first token, ms | each further, ms "
        f"| peak memory, {about['memory']}, MB | weights, MB |",
        "|---|---|---|---|---|---|",
        *(_row(variant) for variant in report.variants),
        "",
    ]
    for with_, without in _pairs(report):
        shares = _overhead(with_, without).values()
        first, further = (_share(values, repeats) for values in shares)
        lines.append(
            f"rotation, {_LABEL[with_.weights]}: first token {first}, each further {further}"
        )
    return "\n".join(lines)


def _row(variant: Measured) -> str:
    peak = max(timing.peak_bytes for timing in variant.timings)
    return (
        f"| {_LABEL[variant.weights]} | {'with' if variant.rotation else 'without'} "
        f"| {_middle([t.prefill_ms for t in variant.timings])} "
        f"| {_middle([t.token_ms for t in variant.timings])} "
        f"| {peak / 1e6:.1f} | {variant.weight_bytes / 1e6:.1f} |"
    )


def _pairs(report: Report) -> list[tuple[Measured, Measured]]:
    rows = report.variants
    return [
        (with_, without) for with_, without in pairwise(rows) if with_.weights == without.weights
    ]


def _overhead(with_: Measured, without: Measured) -> dict[str, list[float]]:
    return {name: list(overheads(with_, without, name)) for name in ("prefill_ms", "token_ms")}


def _brackets(repeats: int) -> str:
    """Return the number of repetitions, and what the brackets hold for it."""
    if repeats >= FEW:
        return f"{repeats} repetitions, in brackets their quartiles"
    if repeats == 1:
        return "measured once, so no spread is known"
    return (
        f"{repeats} repetitions, in brackets the least and the most of them: fewer than {FEW} have "
        "no quartiles"
    )


def _middle(values: Sequence[float]) -> str:
    middle, low, high = (f"{value:.2f}" for value in spread(values))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def _share(shares: Sequence[float], repeats: int) -> str:
    middle, low, high = (f"{100 * share:+.1f}%" for share in shares)
    return middle if repeats == 1 else f"{middle} ({low} to {high})"


def _span(values: tuple[int, int]) -> str:
    least, most = values
    return str(least) if least == most else f"{least} to {most}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
