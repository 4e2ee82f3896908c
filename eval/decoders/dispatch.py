"""Choose a student's next tokens by any of the ten decoders."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ...trainer.student import llava_of
from ...trainer.students.spec import positions_of
from .avisc import avisc
from .call import Call, Finite, PerRecordNoise, check_images
from .damro import damro
from .dola import dola
from .limits import check_prompts
from .m3id import m3id
from .opera import BeamModel, search
from .pai import pai
from .prompts import Prompt
from .settings import (
    Avisc,
    Beam,
    Damro,
    DecodingError,
    Dola,
    M3id,
    Opera,
    Pai,
    Sampled,
    Spec,
    Vcd,
    check_family,
)
from .vcd import vcd

Inputs = Mapping[str, Tensor | None]

_OWN = ("question_ids", "question_mask")  # for a decoder, not for the model


@torch.no_grad()
def decode(
    model: Any, inputs: Inputs, spec: Spec, seed: int = 0, *, ids: Sequence[str] | None = None
) -> Tensor:
    """Answer a left-padded batch of prompts; the model is as before afterwards.

    Args:
        model: a student, with or without adapter and rotation.
        inputs: `input_ids` [B, T], `attention_mask` [B, T], `pixel_values` or None, and what the
            model's family takes beside them. Pixels are best given in float32: VCD's noise is
            added before they are cast to the model's type.
        spec: which decoder, and its settings.
        seed: of decoders that draw.
        ids: record ids; draws depend on a record's own id and the seed alone, not on the rest of
            the batch. None: the number of the row in the batch.

    Returns:
        [B, G] new tokens, padded after the end token.

    Raises:
        DecodingError: the decoder does not fit the student or the inputs, a prompt leaves no
            room for its answer within the student's positions, or a token's scores are no numbers.
    """
    model = llava_of(model)
    check_family(spec, model.config.model_type)
    prompt = Prompt.of(inputs, model.config.image_token_id)
    check_images(model, prompt, inputs.get("pixel_values"))
    names = [str(row) for row in range(len(prompt.ids))] if ids is None else list(ids)
    if len(names) != len(prompt.ids):
        raise DecodingError(f"{len(prompt.ids)} prompts have {len(names)} ids")
    tokens: list[int] = prompt.mask.sum(1).tolist()
    check_prompts(tokens, names, spec, positions_of(model.config.text_config))
    call = Call(model=model, prompt=prompt, inputs=inputs, ids=names, seed=seed)
    if isinstance(spec, Opera):
        return _one_by_one(spec, call)
    with _contrast(spec, call) as processors:
        if isinstance(spec, Sampled):
            processors += _draw(spec, names, seed)
        return _generate(spec, call, [*processors, Finite(spec.name)])


@contextmanager
def _contrast(spec: Spec, call: Call) -> Iterator[list[LogitsProcessor]]:
    """What a decoder does to the logits before a token is drawn."""
    methods: dict[type[Spec], Any] = {
        Vcd: vcd,
        Dola: dola,
        Avisc: avisc,
        M3id: m3id,
        Damro: damro,
        Pai: pai,
    }
    method = methods.get(type(spec))
    if method is None:
        yield []
        return
    with method(spec, call) as processors:
        yield processors


def _draw(spec: Sampled, ids: Sequence[str], seed: int) -> list[LogitsProcessor]:
    """Temperature, top-k, top-p and noise, in this order; nothing where none is drawn."""
    if not spec.sampled:
        return []
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(float(spec.temperature))]
    if spec.top_k:
        steps.append(TopKLogitsWarper(spec.top_k))
    if spec.top_p < 1:
        steps.append(TopPLogitsWarper(float(spec.top_p)))
    return [*steps, PerRecordNoise(ids, seed)]


def _generate(spec: Spec, call: Call, processors: Sequence[LogitsProcessor]) -> Tensor:
    model = call.model
    kind = next(model.parameters()).dtype
    inputs = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in call.inputs.items()
        if value is not None and name not in _OWN
    }
    # transformers fills an argument's defaults from the model's own configuration, so both change.
    own, model.generation_config = model.generation_config, _config(spec, model.generation_config)
    try:
        tokens = model.generate(**inputs, logits_processor=LogitsProcessorList(processors))
    finally:
        model.generation_config = own
    new: Tensor = tokens[:, call.prompt.length :]
    return new


def _config(spec: Spec, own: Any) -> Any:
    make: Any = GenerationConfig
    return make(
        do_sample=False,
        num_beams=spec.beams if isinstance(spec, Beam) else 1,
        length_penalty=1.0,
        early_stopping=False,
        max_new_tokens=spec.max_new_tokens,
        repetition_penalty=1.0,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=_pad(own),
    )


def _ends(own: Any) -> list[int]:
    end = own.eos_token_id
    return list(end) if isinstance(end, list) else [] if end is None else [end]


def _pad(own: Any) -> int | None:
    if own.pad_token_id is not None:
        pad: int = own.pad_token_id
        return pad
    return next(iter(_ends(own)), None)


def _one_by_one(spec: Opera, call: Call) -> Tensor:
    """OPERA rewinds each answer by itself, so a batch is answered prompt after prompt."""
    own = call.model.generation_config
    answers = []
    for row in range(len(call.ids)):
        tokens = call.prompt.mask[row]  # without padding
        alone = Prompt(
            call.prompt.ids[row : row + 1, tokens],
            call.prompt.mask[row : row + 1, tokens],
            call.prompt.visual[row : row + 1, tokens],
        )
        images = call.images_of(row)
        pixels = None
        if call.pixels is not None and images:
            pixels = call.pixels[images].to(next(call.model.parameters()).dtype)
        visual = alone.visual[0]
        if spec.variant == "reference":
            # The released code's slice of the image ends one column late.
            visual = visual | torch.nn.functional.pad(visual[:-1], (1, 0))
        with BeamModel.reading(call.model, alone, pixels, visual) as model:
            answers.append(search(model, spec, frozenset(_ends(own))))
    longest = max(map(len, answers))
    pad = _pad(own) or 0
    padded = [[*answer, *[pad] * (longest - len(answer))] for answer in answers]
    return torch.tensor(padded, device=call.prompt.ids.device)
