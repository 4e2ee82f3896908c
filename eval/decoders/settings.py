"""What a setting of a decoder is: its type, its range, and what is said of a wrong one.

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
    """A number from `least` (or above it) to `most`; infinity is one only if `endless`."""
    about = {"least": least, "most": most, "above": above, "endless": endless}
    return field(default=default, metadata=about)


def choice(default: str, *others: str) -> Any:
    """One of a few words."""
    return field(default=default, metadata={"choices": (default, *others)})


def variant_setting() -> Any:
    """The method as published, or as released code computes it."""
    return choice("published", "reference")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What every decoder has.

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
        """Every setting by name; equal settings (and seed, if seeded) give equal answers."""
        values = {setting_name(one): getattr(self, one.name) for one in fields(self)}
        # JSON has no infinity.
        return {name: str(v) if v in _ENDLESS else v for name, v in values.items()}

    def identity(self, seed: int) -> dict[str, str | int | float | bool]:
        """What decides this decoder's answers, and nothing else."""
        return {"decoder": self.name, **self.settings(), **({"seed": seed} if self.seeded else {})}


def setting_name(one: "Field[Any]") -> str:
    """The name of a setting, as users write it."""
    return one.name.rstrip("_")


def settings_of(kind: type[Spec]) -> "Iterator[tuple[str, Field[Any]]]":
    """Name and field of each setting of a decoder."""
    return ((setting_name(one), one) for one in fields(kind))


def _check(decoder: str, one: "Field[Any]", value: object) -> None:
    where = f"{decoder}: {setting_name(one)}"
    # type(), not isinstance: true is an int. A whole number will do for a float.
    if type(value) is not one.type and not (one.type is float and type(value) is int):
        kinds: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
        raise DecodingError(f"{where} takes {kinds.get(one.type, 'text')}, got {value!r}")
    about = one.metadata
    if "choices" in about and value not in about["choices"]:
        raise DecodingError(f"{where} takes {' or '.join(about['choices'])}, got {value!r}")
    if "least" in about:
        assert isinstance(value, int | float)
        low, high = about["least"], about["most"]
        inside = low < value <= high if about["above"] else low <= value <= high
        if value in _ENDLESS and not about["endless"]:
            raise DecodingError(f"{where} takes finite numbers, got {value!r}")
        if not inside:
            span = _span(low, high, above=about["above"])
            raise DecodingError(f"{where} takes numbers{span}, got {value!r}")


def _span(low: float, high: float, *, above: bool) -> str:
    """What numbers there are, in words; an infinite bound is none."""
    begin = "" if low in _ENDLESS else f" {'above' if above else 'from'} {low:g}"
    return begin if high in _ENDLESS else f"{begin} {'to' if begin else 'up to'} {high:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Spec):
    """What decoders have that draw their tokens.

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
