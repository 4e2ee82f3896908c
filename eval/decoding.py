"""How a student's next tokens are chosen: greedy, beam, nucleus."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

DecoderName = Literal["greedy", "beam", "nucleus"]
DECODERS = get_args(DecoderName)


class DecodingError(ValueError):
    """A decoder's name or setting cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A decoder with its settings; equal settings give equal answers.

    Attributes:
        name: greedy takes the most likely token; beam keeps `beams` hypotheses; nucleus samples
            from the smallest set of tokens whose probability reaches `top_p`.
        max_new_tokens: most tokens of an answer.
        beams: hypotheses of beam search.
        top_p: of nucleus sampling, after `temperature`.
        temperature: divides the logits before `top_p`.
        seed: of nucleus sampling.
    """

    name: DecoderName = "greedy"
    max_new_tokens: int = 128
    beams: int = 5
    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in DECODERS:
            raise DecodingError(f"decoder is {self.name!r}, known are {', '.join(DECODERS)}")
        if self.max_new_tokens < 1 or self.beams < 1:
            raise DecodingError("max_new_tokens and beams take numbers from 1")
        if not 0 < self.top_p <= 1 or not self.temperature > 0:
            raise DecodingError("top_p lies in (0, 1] and temperature above 0")

    def identity(self) -> dict[str, str | int | float]:
        """The settings that decide this decoder's answers, and no others."""
        own: dict[str, tuple[str, ...]] = {
            "greedy": (),
            "beam": ("beams",),
            "nucleus": ("top_p", "temperature", "seed"),
        }
        names = ("max_new_tokens", *own[self.name])
        return {"decoder": self.name, **{name: getattr(self, name) for name in names}}

    def generate(self, model: Any, inputs: dict[str, Tensor | None], ids: Sequence[str]) -> Tensor:
        """Answer a left-padded batch of prompts.

        Args:
            model: rotation attached where it has one.
            inputs: `input_ids` [B, T], `attention_mask` [B, T], `pixel_values` or None, and what
                the model's family takes beside them.
            ids: record ids; a sampled answer depends on its own id and the seed alone, not on
                what else is in the batch.

        Returns:
            [B, G] new tokens, padded after the end token.
        """
        config = self._config(model.generation_config)
        processors = LogitsProcessorList()
        if self.name == "nucleus":
            processors += [
                TemperatureLogitsWarper(self.temperature),
                TopPLogitsWarper(self.top_p),
                _PerRecordNoise(ids, self.seed),
            ]
        prompt = inputs["input_ids"]
        assert prompt is not None
        given = {name: value for name, value in inputs.items() if value is not None}
        # transformers fills what a given configuration leaves at its default from the model's own.
        own, model.generation_config = model.generation_config, config
        try:
            tokens = model.generate(**given, logits_processor=processors)
        finally:
            model.generation_config = own
        new: Tensor = tokens[:, prompt.shape[1] :]
        return new

    def _config(self, own: Any) -> Any:
        make: Any = GenerationConfig
        pad = own.pad_token_id
        eos = own.eos_token_id
        if pad is None:
            pad = eos[0] if isinstance(eos, list) else eos
        return make(
            do_sample=False,
            num_beams=self.beams if self.name == "beam" else 1,
            length_penalty=1.0,
            early_stopping=False,
            max_new_tokens=self.max_new_tokens,
            repetition_penalty=1.0,
            bos_token_id=own.bos_token_id,
            eos_token_id=eos,
            pad_token_id=pad,
        )


class _PerRecordNoise(LogitsProcessor):
    """Turn the argmax into a sample: the Gumbel-max trick with a generator per record.

    argmax(log p + G) with independent standard Gumbel noise G is distributed as p. Sampling from
    one generator for the whole batch would make an answer depend on its neighbours, and a resumed
    run differ from an uninterrupted one.
    """

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        self._generators = []
        for record in ids:
            digest = hashlib.sha256(f"{seed}/{record}".encode()).digest()
            generator = torch.Generator()
            generator.manual_seed(int.from_bytes(digest[:8], "big"))
            self._generators.append(generator)

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add noise to log-probabilities [B, V]."""
        noise = torch.stack(
            [
                torch.rand(scores.shape[1], generator=g, dtype=torch.float64)
                for g in self._generators
            ]
        )
        tiny = torch.finfo(torch.float64).tiny
        gumbel = -(-noise.clamp_min(tiny).log()).log()
        return scores.log_softmax(-1) + gumbel.to(scores)
