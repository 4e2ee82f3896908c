"""VCD: contrast with a noised image (Leng et al., arXiv 2311.16922)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .call import Call, Cut, contrasted, generators, image_features
from .prompts import embed
from .settings import Vcd
from .streams import Contrast, ContrastStream


@contextmanager
def vcd(spec: Vcd, call: Call) -> Iterator[list[LogitsProcessor]]:
    """Make the processors of one call; the noise is drawn once per record, in float32.

    Differs from the paper's released descendants: in MedAlign and MedHEval the noised image never
    reaches the model, so l' = l; `variant=reference` computes exactly that.
    """
    pixels = call.pixels
    if spec.variant == "reference" or pixels is None:
        yield [Cut(spec.beta)]
        return
    model = call.model
    owners = [call.ids[row] for row in range(len(call.ids)) for _ in call.images_of(row)]
    noised = noised_images(pixels.float(), spec.noise_step, owners, call.seed)

    def open_stream() -> ContrastStream:
        weight = next(model.parameters())
        features = image_features(model, noised.to(weight))
        return ContrastStream(model, embed(model, call.prompt, features), call.prompt.length)

    def combine(logits: Tensor, other: Tensor, _done: int) -> Tensor:
        return contrasted(logits, other, spec.alpha, spec.beta)

    yield [Contrast(open_stream, combine, call.prompt.length)]


def noised_images(pixels: Tensor, step: int, owners: Sequence[str], seed: int) -> Tensor:
    """Diffuse images [P, 3, S, S]; equal records and seeds give equal noise.

    Args:
        pixels: float32, normalised.
        step: 0 to 999.
        owners: record of each image; a record's images take its noise one after the other.
        seed: of the run.
    """
    by_record = dict(zip(owners, generators(owners, seed, "image"), strict=True))
    noise = [torch.randn(pixels.shape[1:], generator=by_record[owner]) for owner in owners]
    signal, spread = diffusion(step)
    return signal * pixels + spread * torch.stack(noise).to(pixels)


def diffusion(step: int) -> tuple[float, float]:
    """Factors of image and noise after `step` steps, step itself included.

    Variances b_i = sigmoid(u_i) (5e-3 - 1e-5) + 1e-5 with 1000 u_i from -6 to 6; the image keeps
    sqrt(prod (1 - b_i)).
    """
    steps = torch.linspace(-6, 6, 1000, dtype=torch.float64)
    variances = steps.sigmoid() * (5e-3 - 1e-5) + 1e-5
    share = float((1 - variances)[: step + 1].prod())
    return share**0.5, (1 - share) ** 0.5
