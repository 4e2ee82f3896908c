"""The ten decoders as settings: one dataclass each, checked where it is made."""

from dataclasses import dataclass
from typing import ClassVar, Final

from .settings import DecodingError, Sampled, Spec, choice, number, variant_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy(Spec):
    """The most likely token."""

    name: ClassVar[str] = "greedy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam(Spec):
    """The best of several hypotheses by mean log-probability.

    Attributes:
        beams: hypotheses.
    """

    name: ClassVar[str] = "beam"
    beams: int = number(5, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nucleus(Sampled):
    """A draw from the fewest tokens whose probability reaches `top_p`."""

    name: ClassVar[str] = "nucleus"
    top_p: float = number(0.9, 0, 1, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vcd(Sampled):
    """Contrast with a noised image.

    Attributes:
        alpha: weight of the contrast.
        beta: tokens less likely than beta times the most likely one are cut off.
        noise_step: how far the image is diffused, 0 to 999.
        variant: `reference` contrasts nothing, as the released code of MedAlign.
    """

    name: ClassVar[str] = "vcd"
    alpha: float = number(1.0, 0)
    beta: float = number(0.1, 0, 1)
    noise_step: int = number(500, 0, 999)
    variant: str = variant_setting()

    @property
    def seeded(self) -> bool:
        """Whether answers depend on a seed: the image's noise does."""
        return self.sampled or self.variant == "published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dola(Spec):
    """Contrast with what an earlier layer would say.

    Attributes:
        layers: whose input is compared: `low` (even ones of the lower half), `high` (even ones of
            the upper half), or numbers such as 0,2,4.
        relative_top: tokens less likely than this times the most likely one are cut off.
        repetition_penalty: divides the score of tokens that stand in the prompt or answer.
        variant: how a layer is selected: by the paper's divergence, or by the one that the
            released code computes.
    """

    name: ClassVar[str] = "dola"
    layers: str = "low"
    relative_top: float = number(0.1, 0, 1)
    repetition_penalty: float = number(1.0, 0, above=True)
    variant: str = variant_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opera(Spec):
    """Beam search with a penalty on over-trusted tokens, and rewinding.

    Attributes:
        beams: hypotheses.
        scale: sigma, scales attention before the products of its columns.
        threshold: r, how often a column must dominate before the search is rewound.
        candidates: tokens of each beam that are looked at; also how often one place is rewound to.
        weight: of the penalty.
        window: how many steps back a rewind may go.
        variant: `reference` counts the column behind the image as image, and keeps over-trust in
            16 bits, as the released code.
    """

    name: ClassVar[str] = "opera"
    beams: int = number(5, 1)
    scale: float = number(50.0, 0, above=True)
    threshold: int = number(15, 1)
    candidates: int = number(5, 1)
    weight: float = number(1.0, 0)
    window: int = number(512, 1)
    variant: str = variant_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class Avisc(Sampled):
    """Contrast with a prompt that keeps only the image tokens that draw most attention.

    Attributes:
        alpha, beta: as for VCD.
        gamma: the layers that are read hold this share of all attention to the image.
        lambda_: a token is "blind" whose attention is this many standard deviations above the mean.
        scheme: what the other image tokens become.
    """

    name: ClassVar[str] = "avisc"
    alpha: float = number(1.0, 0)
    beta: float = number(0.1, 0, 1)
    gamma: float = number(0.5, 0, 1)
    lambda_: float = number(1.0, float("-inf"), endless=True)
    scheme: str = choice("zeros", "ones", "noise")

    @property
    def seeded(self) -> bool:
        """Whether answers depend on a seed: noise in the place of image tokens does."""
        return self.sampled or self.scheme == "noise"


@dataclass(frozen=True, slots=True, kw_only=True)
class M3id(Sampled):
    """Contrast with the prompt without its image, the more the longer the answer.

    Attributes:
        lambda_: how fast the contrast grows: its weight at token t is e^(lambda t) - 1.
        gate: `published`: contrast only where no token is as likely as this.
        beta: `reference`: tokens less likely than beta times the most likely one are cut off.
        variant: `published` has the paper's gate, `reference` the cut of the released code.
    """

    name: ClassVar[str] = "m3id"
    lambda_: float = number(0.02, 0)
    gate: float = number(0.3, 0, 1)
    beta: float = number(0.1, 0, 1)
    variant: str = variant_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class Damro(Sampled):
    """Contrast with a prompt that shows only the patches the vision tower attends to most.

    Attributes:
        alpha, beta: as for VCD.
        top_tokens: patches of each image that are shown.
        mode: the others become `zero`, or are dropped from the prompt (`drop`).
        layer: of the vision tower, counted from its end: -1 is the last.
        split_heads: softmax by head, then mean; without it over the whole width at once.
        variant: `reference` contrasts nothing, as the released code of MedAlign.
    """

    name: ClassVar[str] = "damro"
    alpha: float = number(0.5, 0)
    beta: float = number(0.1, 0, 1)
    top_tokens: int = number(10, 1)
    mode: str = choice("zero", "drop")
    layer: int = number(-1, float("-inf"), -1)
    split_heads: bool = True
    variant: str = variant_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pai(Sampled):
    """Attend more to the image, and contrast with the prompt without it.

    Attributes:
        temperature: 0, the most likely token, unless set.
        alpha: what is added to a score of the image, as a share of its size.
        gamma: weight of the contrast; 1 is none.
        beta: as for VCD.
        first_layer: first layer whose attention is changed.
        last_layer: last one; -1 is the last of the model.
        first_token: change attention also for the answer's first token.
        variant: `reference` takes the bare question as the prompt without image, as the released
            code of MedAlign.
    """

    name: ClassVar[str] = "pai"
    temperature: float = number(0.0, 0)
    alpha: float = number(0.2, 0)
    gamma: float = number(1.1, 0)
    beta: float = number(0.1, 0, 1)
    first_layer: int = number(2, 0)
    last_layer: int = number(-1, -1)
    first_token: bool = True
    variant: str = variant_setting()


SPECS: Final[dict[str, type[Spec]]] = {
    kind.name: kind for kind in (Greedy, Beam, Nucleus, Vcd, Dola, Opera, Avisc, M3id, Damro, Pai)
}
"""Every decoder by its name."""

ANY_FAMILY: Final = (Greedy, Beam, Nucleus)
"""Decoders that know nothing of images, so they serve every family of students."""


def check_family(spec: Spec, model_type: str) -> None:
    """Refuse a decoder that looks into the model, for a family whose inside it does not know.

    Raises:
        DecodingError: names both.
    """
    if model_type != "llava" and not isinstance(spec, ANY_FAMILY):
        raise DecodingError(
            f"{spec.name} works with llava students, not {model_type}; "
            f"take {', '.join(kind.name for kind in ANY_FAMILY)}"
        )
