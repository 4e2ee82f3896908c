"""Settings of the decoders: types, defaults, ranges, and messages about wrong values.

A setting's name is its field's, without the underscore that keeps `lambda_` from being Python's.
"""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Final

_ENDLESS: Final = (float("inf"), float("-inf"))
_COLDEST: Final = 1e-6


class DecodingError(ValueError):
    """A decoder's name or setting cannot be used, or does not fit the student."""


def number(
    default: float,
    least: float,
    most: float = float("inf"),
    *,
    above: bool = False,
    endless: bool = False,
) -> Any:
    """Declare a number from `least` (or above it) to `most`; infinity needs `endless`."""
    about = {"least": least, "most": most, "above": above, "endless": endless}
    return field(default=default, metadata=about)


def choice(default: str, *others: str) -> Any:
    """Declare a choice of a few words."""
    return field(default=default, metadata={"choices": (default, *others)})


def variant_setting() -> Any:
    """Declare the choice of the method as published, or as released code computes it."""
    return choice("published", "reference")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Settings of every decoder.

    Attributes:
        max_new_tokens: most tokens of an answer.

    Raises:
        DecodingError: a value is of the wrong type or out of range.
    """

    name: ClassVar[str]
    max_new_tokens: int = number(128, 1)

    def __post_init__(self) -> None:
        for one in fields(self):
            _check(self.name, one, getattr(self, one.name))

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn."""
        return False

    @property
    def seeded(self) -> bool:
        """Whether answers depend on a seed: tokens are drawn, or something else is."""
        return self.sampled

    def settings(self) -> dict[str, str | int | float | bool]:
        """Return every setting by name; equal settings (and seeds) give equal answers."""
        values = {setting_name(one): getattr(self, one.name) for one in fields(self)}
        # JSON has no infinity.
        return {name: str(v) if v in _ENDLESS else v for name, v in values.items()}

    def identity(self, seed: int) -> dict[str, str | int | float | bool]:
        """Return everything that decides this decoder's answers."""
        return {"decoder": self.name, **self.settings(), **({"seed": seed} if self.seeded else {})}


def setting_name(one: "Field[Any]") -> str:
    """Return the name of a setting, as users write it."""
    return one.name.rstrip("_")


def settings_of(kind: type[Spec]) -> "Iterator[tuple[str, Field[Any]]]":
    """Yield name and field of each setting of a decoder."""
    return ((setting_name(one), one) for one in fields(kind))


def _check(decoder: str, one: "Field[Any]", value: object) -> None:
    name = f"{decoder}: {setting_name(one)}"
    # type(), not isinstance: true is an int. A whole number will do for a float.
    if type(value) is not one.type and not (one.type is float and type(value) is int):
        kinds: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
        raise DecodingError(f"{name} takes {kinds.get(one.type, 'text')}, got {value!r}")
    about = one.metadata
    if "choices" in about and value not in about["choices"]:
        raise DecodingError(f"{name} takes {' or '.join(about['choices'])}, got {value!r}")
    if "least" in about:
        assert isinstance(value, int | float)
        low, high = about["least"], about["most"]
        inside = low < value <= high if about["above"] else low <= value <= high
        if value in _ENDLESS and not about["endless"]:
            raise DecodingError(f"{name} takes finite numbers, got {value!r}")
        if not inside:
            span = _span(low, high, above=about["above"])
            raise DecodingError(f"{name} takes numbers{span}, got {value!r}")


def _span(low: float, high: float, *, above: bool) -> str:
    """Return a range in words; an infinite bound is left out."""
    begin = "" if low in _ENDLESS else f" {'above' if above else 'from'} {low:g}"
    return begin if high in _ENDLESS else f"{begin} {'to' if begin else 'up to'} {high:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Spec):
    """Settings of decoders that draw their tokens.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token instead of drawing one.
        top_k: draw from the k most likely tokens; 0 is all.
        top_p: draw from the fewest tokens whose probability reaches this.
    """

    temperature: float = number(1.0, 0)
    top_k: int = number(0, 0)
    top_p: float = number(1.0, 0, 1, above=True)

    def __post_init__(self) -> None:
        """Refuse also what divides logits beyond float32."""
        Spec.__post_init__(self)
        if 0 < self.temperature < _COLDEST:
            raise DecodingError(
                f"{self.name}: temperature takes 0 or numbers from {_COLDEST:g}, "
                f"got {self.temperature!r}"
            )

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0


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
    """Contrast with the prediction of an earlier layer.

    Attributes:
        layers: layers whose input is compared: `low` (even ones of the lower half), `high` (even
            ones of the upper half), or numbers such as 0,2,4.
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
        candidates: tokens of each beam that are tried; also how often one token is rewound to.
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
"""Decoders that do not look at images, so they serve every family of students."""


def check_family(spec: Spec, model_type: str) -> None:
    """Refuse a decoder that reads the model's layers, for a family whose layers it does not know.

    Raises:
        DecodingError: names both.
    """
    if model_type != "llava" and not isinstance(spec, ANY_FAMILY):
        raise DecodingError(
            f"{spec.name} works with llava students, not {model_type}; "
            f"take {', '.join(kind.name for kind in ANY_FAMILY)}"
        )
