"""When each token of an answer is there, as a user of `generate` gets it."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from .memory import begin_peak, peak_since
from .prompts import BenchPrompt


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


class _Arrivals:
    """Takes the place of a streamer, which is given every token when it is on the CPU."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, _tokens: Tensor) -> None:
        """Note the time; the first call brings the prompt."""
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""


@torch.no_grad()
def time_answer(model: Any, prompt: BenchPrompt, tokens: int) -> Timing:
    """Generate exactly `tokens` tokens greedily, whatever they are.

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
