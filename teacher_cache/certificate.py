"""What recomputing some rows of a cache showed, as the seal carries it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self, TypeVar

from .storage.untrusted import (
    TeacherCacheError,
    check_int,
    check_mapping,
    check_text,
    check_type,
    strict_fields,
    within,
)

_MOST_ROWS = 2**20
_LAST_ROW = 2**31 - 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far stored and recomputed rows may be apart; `pipeline.drift` has the reasons.

    Attributes:
        cosine: least cosine of a stored and a recomputed patch.
        gram: largest absolute error of the cosine Gram.
        attention: largest error of attention, as a share of the row's largest attention.
    """

    cosine: float
    gram: float
    attention: float

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _number(getattr(self, name), f"tolerance: {name}")

    def looser(self, other: Self) -> Self:
        """Return the tolerance that allows what either allows."""
        return type(self)(
            cosine=min(self.cosine, other.cosine),
            gram=max(self.gram, other.gram),
            attention=max(self.attention, other.attention),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """How far stored and recomputed values are apart, of one row or at worst of several.

    Attributes:
        cosine: least cosine of stored and recomputed patches; None where the codec keeps none.
        gram: largest absolute error of the cosine Gram, over pairs of image patches.
        attention: largest absolute error of attention, over image patches.
        attention_share: that of each row divided by the row's largest attention.
        other: what must be equal and is not (`valid`, `source_size`), empty if all is.
    """

    cosine: float | None
    gram: float
    attention: float
    attention_share: float
    other: str = ""

    def __post_init__(self) -> None:
        for name in ("gram", "attention", "attention_share"):
            _number(getattr(self, name), name)
        if self.cosine is not None:
            _number(self.cosine, "cosine")
        check_text(self.other, "other", empty=True)

    def outside(self, tolerance: Tolerance) -> list[str]:
        """Say what is beyond `tolerance`."""
        violations = [self.other] if self.other else []
        if self.cosine is not None and self.cosine < tolerance.cosine:
            violations.append(f"cosine {self.cosine:.7g}, at least {tolerance.cosine:.7g} needed")
        for name, value, most in (
            ("Gram error", self.gram, tolerance.gram),
            ("attention error (share of its largest)", self.attention_share, tolerance.attention),
        ):
            if value > most:
                violations.append(f"{name} {value:.3g}, at most {most:.3g} allowed")
        return violations

    def used(self, tolerance: Tolerance) -> float:
        """Return which share of `tolerance` is used up, by what uses most of it."""
        if self.other:
            return math.inf
        angle = 0.0
        if self.cosine is not None:
            angle = max(0.0, 1 - self.cosine) / max(1 - tolerance.cosine, 1e-300)
        return max(
            math.sqrt(angle),  # an angle grows with the root of what the cosine loses
            self.gram / max(tolerance.gram, 1e-300),
            self.attention_share / max(tolerance.attention, 1e-300),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that was drawn and could not be recomputed, and why."""

    row: int
    path: str
    reason: str

    def __post_init__(self) -> None:
        check_int(self.row, "skipped: row", 0, _LAST_ROW)
        check_text(self.path, "skipped: path", empty=True)
        check_text(self.reason, "skipped: reason", empty=True)


Part = TypeVar("Part", Tolerance, Deviation, Skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What recomputing some rows with the expert showed.

    Attributes:
        rows: those that were recomputed.
        seed: they were drawn with.
        skipped: drawn as well, but their images were missing or changed.
        deviation: the worst of each number over all rows.
        worst_row: the row that uses up most of the tolerance.
        worst_path: an image path of it.
        tolerance: what was allowed.
        device: what computed, `cpu` or the name of a GPU.
        dtype: what was computed in.
        versions: of the libraries that took part.
        date: UTC, ISO 8601.
    """

    rows: tuple[int, ...]
    seed: int
    skipped: tuple[Skipped, ...]
    deviation: Deviation
    worst_row: int
    worst_path: str
    tolerance: Tolerance
    device: str
    dtype: str
    versions: Mapping[str, str] = field(hash=False)
    date: str

    def __post_init__(self) -> None:
        check_int(len(self.rows), "number of rows", 1, _MOST_ROWS)
        for row in (*self.rows, self.worst_row):
            check_int(row, "row", 0, _LAST_ROW)
        check_int(self.seed, "seed", 0, 2**63 - 1)
        for name in ("worst_path", "device", "dtype", "date"):
            check_text(getattr(self, name), name)
        for name, version in check_mapping(self.versions, "versions").items():
            check_text(version, f"versions {name!r}")

    def outside(self) -> list[str]:
        """Say what is beyond the tolerance; empty when all is within."""
        return self.deviation.outside(self.tolerance)

    def summary(self) -> str:
        """Return it in one line."""
        worst = self.deviation
        cosine = "" if worst.cosine is None else f"cosine >= {floored(worst.cosine)}, "
        rows = f"{len(self.rows)} row{'s' * (len(self.rows) != 1)}"
        return (
            f"{rows} recomputed {self.date[:10]} in {self.dtype} on {self.device}: {cosine}"
            f"Gram error <= {worst.gram:.1e}, attention error <= {worst.attention:.1e}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, which `from_json` reads back to an equal certificate."""
        lists = {"rows": list(self.rows), "skipped": list(map(asdict, self.skipped))}
        return {**asdict(self), **lists, "versions": dict(self.versions)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the JSON form.

        Raises:
            TeacherCacheError: a key is missing or unknown, or a value cannot be.
        """
        with within("certificate"):
            fields = strict_fields(value, cls.__slots__, "fields")
            for name in ("rows", "skipped"):
                check_type(fields[name], name, list)
            fields["rows"] = tuple(fields["rows"])
            fields["skipped"] = tuple(_part(Skipped, row, "skipped") for row in fields["skipped"])
            fields["deviation"] = _part(Deviation, fields["deviation"], "deviation")
            fields["tolerance"] = _part(Tolerance, fields["tolerance"], "tolerance")
            return cls(**fields)


def read_certificate(value: Mapping[str, Any] | None) -> Certificate | None:
    """Read the certificate of a seal, which need not have one.

    Raises:
        TeacherCacheError: it has one that says nothing usable.
    """
    return None if value is None else Certificate.from_json(value)


def floored(cosine: float) -> str:
    """Write a cosine with seven digits, never as more than it is: 0.99999999 is not 1."""
    return f"{math.floor(cosine * 1e7) / 1e7:.7f}"


def _part(kind: type[Part], value: object, name: str) -> Part:
    return kind(**strict_fields(value, kind.__slots__, name))


def _number(value: object, name: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TeacherCacheError(f"{name} takes a number, got {value!r:.80}")
