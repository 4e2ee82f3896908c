"""Do adapter, merged and exported model say the same? Numbers for every checked conversation."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ...runtime.libraries import ADVICE
from .modeling_medalign_llava import MedAlignLlavaConfig, name_weights_as_llava
from .samples import GateSample

KL_LIMIT: Final = {torch.float32: 1e-7, torch.bfloat16: 2e-2}
"""Most mean KL, in nats a token, that merging may cost. Measured on random students of up to 16
layers: 1e-13 to 1e-11 in float32, 1e-5 to 2e-3 in bfloat16, where every merged weight is rounded
once more than base and adapter side by side."""

SAME_KL: Final = 1e-6
"""Most mean KL between merged and exported model, which hold the same numbers."""

PIXEL_LIMIT: Final = 0.02
"""Most difference of a normalised pixel, about one of 255 grey levels. It is 0 but for images more
than 64 times as long as wide; another geometry costs much more."""


class GateError(RuntimeError):
    """The exported model does not say what the adapter says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far one model's logits lie from another's on one conversation of T tokens.

    Attributes:
        tokens, answer_tokens: positions compared, and those whose next token is an answer's.
        max_abs: largest difference of a logit.
        kl: mean over all positions of KL(reference || other), in nats.
        answer_kl: the same over the answer's positions; 0 without any.
    """

    tokens: int
    answer_tokens: int
    max_abs: float
    kl: float
    answer_kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One conversation through adapter, merged and exported model.

    Attributes:
        record: number of its record in the manifest, from 1.
        images: it has.
        merged: the merged model against the adapter.
        exported: the model read back from the folder against the merged one.
        pixels: largest difference between the exported processor's pixels and the training's.
    """

    record: int
    images: int
    merged: Gap
    exported: Gap
    pixels: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the record's id: an export is published."""
        return asdict(self)

    def line(self) -> str:
        """One line for a user."""
        merged, exported = self.merged, self.exported
        return (
            f"record {self.record}: {merged.tokens} tokens, {merged.answer_tokens} of the answer; "
            f"merged: max {merged.max_abs:.2g}, KL {merged.kl:.2g}, "
            f"of the answer {merged.answer_kl:.2g}; "
            f"exported: max {exported.max_abs:.2g}, KL {exported.kl:.2g}; "
            f"pixels: max {self.pixels:.2g}"
        )


def require_known_transformers() -> None:
    """Refuse to export a rotation that this version of transformers could not load again.

    The one private interface that an export depends on; call it to learn of a change early.

    Raises:
        GateError: names what is missing, and the versions that have it.
    """
    try:
        name_weights_as_llava(MedAlignLlavaConfig.model_type)
    except ImportError as error:
        raise GateError(f"{error}; nothing was exported; {ADVICE} transformers") from error


@torch.inference_mode()
def logits_of(llava: Any, samples: Sequence[GateSample]) -> list[Tensor]:
    """Logits [T, V] of every sample, on the CPU in the model's dtype."""
    logits = []
    for sample in samples:
        batch = sample.batch.to(llava.device, llava.dtype)
        out = llava(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=batch.pixel_values,
            use_cache=False,
        )
        logits.append(out.logits[0].cpu())
    return logits


def fingerprints(llava: Any) -> dict[str, str]:
    """SHA-256 of every tensor of a model, by its name."""
    digests = {}
    for name, tensor in llava.state_dict().items():
        data = tensor.detach().cpu().contiguous().view(torch.uint8)
        digests[name] = hashlib.sha256(data.numpy()).hexdigest()
    return digests


def same_tensors(merged: dict[str, str], exported: dict[str, str]) -> None:
    """Compare `fingerprints` of the merged model and of the one read back.

    Raises:
        GateError: a tensor is missing, is new, or holds another number.
    """
    names = sorted(merged.keys() | exported.keys())
    if differ := [name for name in names if merged.get(name) != exported.get(name)]:
        raise GateError(
            f"read back from the folder, {len(differ)} of {len(names)} tensors are not what was "
            f"merged: {', '.join(differ[:3])}; nothing was exported"
        )


def gap(reference: Tensor, other: Tensor, answers: Tensor) -> Gap:
    """Compare two models' logits.

    Args:
        reference: [T, V].
        other: [T, V].
        answers: [A] positions whose next token belongs to an answer.
    """
    largest, kls = 0.0, []
    # A few rows at a time: float64 of a whole conversation is a gigabyte at 152,000 words.
    for first in range(0, len(reference), 64):
        rows = slice(first, first + 64)
        a, b = reference[rows].double(), other[rows].double()
        # Not Python's max, which would pass over NaN.
        largest = float(torch.maximum(torch.tensor(largest).double(), (a - b).abs().max()))
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        kls.append((p.exp() * (p - q)).sum(-1))
    kl = torch.cat(kls)
    return Gap(
        tokens=len(kl),
        answer_tokens=len(answers),
        max_abs=largest,
        kl=float(kl.mean()),
        answer_kl=float(kl[answers].mean()) if len(answers) else 0.0,
    )


def judge(checked: Sequence[Checked], limit: float) -> None:
    """Refuse a model that says something else.

    Args:
        checked: at least what `gap` measured for each sample.
        limit: most mean KL that merging may cost, over all positions and over the answer's.

    Raises:
        GateError: a number is above its limit, or is none.
    """
    for one in checked:
        bounds = (
            ("merging moved the mean KL", max_kl(one.merged), limit),
            ("the exported folder moved the mean KL", max_kl(one.exported), min(limit, SAME_KL)),
            ("the exported processor moved a pixel", one.pixels, PIXEL_LIMIT),
        )
        for what, value, most in bounds:
            if not value <= most:  # NaN is refused
                raise GateError(
                    f"record {one.record}: {what} by {value:.3g}, allowed is {most:.3g}; "
                    "nothing was exported"
                )


def max_kl(measured: Gap) -> float:
    """The larger of both means; NaN if one is."""
    return float(torch.tensor([measured.kl, measured.answer_kl]).max())
