"""What does each decoder cost beside greedy: time to the first token, per token, and memory?

A random Llava student (Mistral, 576 visual tokens, no end token, so that every answer has the same
length) answers the same prompts with every decoder at its defaults. Each decoder has processes of
its own, in turns, and its quickest round counts; the first answer of a process is not counted. On a
CPU one thread computes, and its own time is taken. `expected` is the number of sequences that go
through the language model per token, which is what a machine bound by arithmetic would pay; one
bound by reading weights pays less for sequences that go through together. Memory is the most above
the weights.

Usage: python benchmarks/decoding.py [--size small|7b] [--batch 1] [--tokens 24] [--rounds 3]
           [--decoders greedy,vcd,...]
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEFORE, AFTER = 40, 20  # tokens around the image
SIZES = {
    "small": {"width": 512, "inner": 1408, "layers": 8, "heads": 8, "keys": 4, "words": 32000},
    "7b": {"width": 4096, "inner": 14336, "layers": 32, "heads": 32, "keys": 8, "words": 32000},
}
TOWERS = {
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4},
    "7b": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
}


def student(size: str) -> Any:
    """Make a random student on the best device, without an end token."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        MistralConfig,
    )

    s = SIZES[size]
    text: Any = MistralConfig
    vision: Any = CLIPVisionConfig
    both: Any = LlavaConfig
    config = both(
        text_config=text(
            hidden_size=s["width"],
            intermediate_size=s["inner"],
            num_hidden_layers=s["layers"],
            num_attention_heads=s["heads"],
            num_key_value_heads=s["keys"],
            vocab_size=s["words"],
            sliding_window=None,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
        ),
        vision_config=vision(**TOWERS[size], num_attention_heads=16, image_size=336, patch_size=14),
        image_token_index=s["words"] - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    cuda = torch.cuda.is_available()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if cuda else torch.float32)
    with torch.device("cuda" if cuda else "cpu"):
        model: Any = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def prompts(model: Any, batch: int) -> dict[str, Any]:
    """Prompts of one image each."""
    import torch

    generator = torch.Generator().manual_seed(0)
    words = model.config.text_config.vocab_size - 1
    text = torch.randint(3, words, (batch, BEFORE + AFTER), generator=generator)
    image = torch.full((batch, 576), model.config.image_token_id)
    ids = torch.cat([text[:, :BEFORE], image, text[:, BEFORE:]], dim=1)
    pixels = torch.randn(batch, 3, 336, 336, generator=generator)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {name: value.to(model.device) for name, value in given.items()}


def seconds(call: Callable[[], Any]) -> float:
    """Time one call: on a GPU until it is done, on a CPU the time that this process computed."""
    import torch

    if not torch.cuda.is_available():
        begun = time.process_time()
        call()
        return time.process_time() - begun
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def held_mb() -> float:
    """Memory that is held now, in MB: the GPU's, or this process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 1e6
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """Most memory that was ever held."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Answer once with one token and once with many, in this process."""
    import torch

    from medalign.trainer.machine import quiet_libraries

    quiet_libraries()
    from medalign.eval.decoders import decode, make_spec

    torch.set_num_threads(1)
    model = student(given.size)
    inputs = prompts(model, given.batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    weights = held_mb()

    def answer(tokens: int) -> float:
        spec = make_spec(given.measure, None, {"max_new_tokens": tokens})
        return seconds(lambda: decode(model, inputs, spec))

    answer(2)
    first, all_ = answer(1), answer(given.tokens)
    return {
        "first_ms": 1e3 * first,
        "token_ms": 1e3 * (all_ - first) / (given.tokens - 1),
        "tokens_per_second": given.batch * given.tokens / all_,
        "memory_mb": peak_mb() - weights,
    }


def expected(name: str, size: str) -> str:
    """Sequences per token, greedy 1."""
    s = SIZES[size]
    head = s["words"] * s["width"]
    keys = 2 * s["width"] * s["width"] * s["keys"] // s["heads"]
    layer = 2 * s["width"] ** 2 + keys + 3 * s["width"] * s["inner"]
    rows = len(range(0, (s["layers"] + 1) // 2, 2))
    dola = 1 + rows * head / (head + s["layers"] * layer)
    costs = {"beam": 5, "vcd": 2, "dola": dola, "opera": 30, "avisc": 2, "m3id": 2, "damro": 2}
    return f"{ {**costs, 'pai': 2}.get(name, 1):.3g}".strip()


def _best(lines: list[dict[str, float]]) -> dict[str, float]:
    """The quickest round: what else the machine does can only slow one down."""
    most = {"tokens_per_second"}
    return {key: (max if key in most else min)(line[key] for line in lines) for key in lines[0]}


def main() -> None:
    from medalign.eval.decoders import SPECS

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decoders", default=",".join(SPECS))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given)))
        return
    names = given.decoders.split(",")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    sizes = ["--size", given.size, "--batch", str(given.batch), "--tokens", str(given.tokens)]
    for _ in range(given.rounds):
        for name in names:
            words = [sys.executable, __file__, *sizes, "--measure", name]
            out = subprocess.check_output(words, text=True)
            found[name].append(json.loads(out.splitlines()[-1]))
    best = {name: _best(lines) for name, lines in found.items()}
    base = best[names[0]]
    print(
        "| decoder | tokens/s | ratio | first token, ms | ratio | each further, ms | ratio "
        "| expected | memory, MB | ratio |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for name, m in best.items():
        ratio = {key: m[key] / base[key] for key in m}
        print(
            f"| {name} | {m['tokens_per_second']:.1f} | {ratio['tokens_per_second']:.2f} | "
            f"{m['first_ms']:.0f} | {ratio['first_ms']:.2f} | {m['token_ms']:.1f} | "
            f"{ratio['token_ms']:.2f} | "
            f"{expected(name, given.size)} | {m['memory_mb']:.0f} | {ratio['memory_mb']:.2f} |"
        )
    print(json.dumps({"rounds": found, "cpu": platform.machine()}))


if __name__ == "__main__":
    main()
