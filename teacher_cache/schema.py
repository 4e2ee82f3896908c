"""What a teacher cache says about itself: grid, expert, card, plan. No arrays, no files."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

from .storage.untrusted import (
    MAX_ROWS,
    canonical_json,
    check_choice,
    check_int,
    check_mapping,
    check_relative,
    check_sha256,
    check_text,
    check_type,
    strict_fields,
)
from .storage.untrusted import TeacherCacheError as TeacherCacheError

FORMAT = 1
"""Version of the layout on disk; a reader of another version refuses the store."""
FeatureChoice = Literal["last", "ln_post"]
CacheMode = Literal["aligned", "paper"]
CODECS = ("fp16", "gram")

# Far above any vision tower, far below what would exhaust memory when a store lies.
MAX_SIDE = 1024
MAX_WIDTH = 65_536
MAX_ROW_BYTES = 2**28
MAX_SHARD_ROWS = 65_536

# 16-bit codes reach about the one; beyond the other a code teaches noise.
MIN_GRAM_ERROR = 1e-5
MAX_GRAM_ERROR = 0.1

_OPTIONS = {
    "expert.features": " (--features)",
    **{name: f" (--{name})" for name in ("alpha", "codec", "dtype", "geometry", "grid", "mode")},
    "max_gram_error": " (--max-gram-error)",
    "shard_rows": " (--shard-rows)",
}
_NOT_NUMBERS = ("versions", "shard_rows")
_GRID = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Rows and columns of patches in one image; patches are stored row by row."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("cols", self.cols)):
            check_int(value, f"patch grid {name}", 1, MAX_SIDE)

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"

    @property
    def size(self) -> int:
        """Number of patches N."""
        return self.rows * self.cols

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `24x24`, rows first.

        Raises:
            TeacherCacheError: not two positive numbers joined by `x`.
        """
        match = _GRID.fullmatch(check_text(text, "patch grid", empty=True))
        if match is None:
            raise TeacherCacheError(f"a patch grid is written like 24x24, got {text!r}")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCard:
    """The frozen vision tower whose outputs a cache holds.

    Attributes:
        name: as given to `--expert`.
        architecture: open_clip's name of the tower.
        weights_sha256: hex digest that identifies the visual weights.
        features: `last` is the output of the last block before `ln_post`, `ln_post` after it.
        grid: the expert's own patch grid.
        width: b, features per patch.
        image_size: side in pixels of the square the expert sees.
        normalise_before_interpolation: whether patches are L2-normalised before they are
            resampled as well as after.
        licence: licence text or name of the weights.
    """

    name: str
    architecture: str
    weights_sha256: str
    features: FeatureChoice
    grid: PatchGrid
    width: int
    image_size: int
    normalise_before_interpolation: bool
    licence: str

    def __post_init__(self) -> None:
        check_text(self.name, "expert name")
        check_text(self.architecture, "expert architecture")
        check_sha256(self.weights_sha256, "expert weights_sha256")
        check_choice(self.features, "expert features", get_args(FeatureChoice))
        check_type(self.grid, "expert grid", PatchGrid)
        check_int(self.width, "expert width", 1, MAX_WIDTH)
        check_int(self.image_size, "expert image_size", 1, 65_536)
        check_type(self.normalise_before_interpolation, "normalise_before_interpolation", bool)
        check_text(self.licence, "expert licence", empty=True)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the grid is written `24x24`."""
        return {**asdict(self), "grid": str(self.grid)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the JSON form.

        Raises:
            TeacherCacheError: a key is missing or unknown, or a value cannot be.
        """
        fields = strict_fields(value, cls.__slots__, "expert")
        return cls(**{**fields, "grid": PatchGrid.parse(fields["grid"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCard:
    """Everything that decides the numbers of a cache, and how they are stored.

    Attributes:
        expert: the tower that was run.
        grid: the student's patch grid, to which patches and attention were resampled.
        geometry: how source pixels were mapped to the square (`pad`, `crop`, `stretch`).
        mode: `aligned` gives expert and student one geometry, `paper` does not.
        fill: colour of padding, 8-bit RGB.
        alpha: colour behind transparent pixels.
        dtype: what the expert computed in.
        interpolation: how patches were resampled.
        codec: `fp16` stores patch features, `gram` their similarities in compact form.
        max_gram_error: RMS error of the cosine Gram that codec `gram` may make in an image; None
            for `fp16`.
        shard_rows: S, rows per shard; one shard is one unit of writing and resuming.
        versions: versions of the libraries that took part; not part of the identity.
    """

    expert: ExpertCard
    grid: PatchGrid
    geometry: str
    mode: CacheMode
    fill: tuple[int, int, int]
    alpha: str
    dtype: str
    interpolation: str
    codec: str
    max_gram_error: float | None = None
    shard_rows: int
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_type(self.expert, "expert", ExpertCard)
        check_type(self.grid, "grid", PatchGrid)
        for name in ("geometry", "alpha", "dtype", "interpolation"):
            check_text(getattr(self, name), name)
        check_choice(self.mode, "mode", get_args(CacheMode))
        check_choice(self.codec, "codec", CODECS)
        _check_gram_error(self.codec, self.max_gram_error)
        check_int(self.shard_rows, "shard_rows", 1, MAX_SHARD_ROWS)
        check_type(self.fill, "fill", tuple)
        check_int(len(self.fill), "number of fill values", 3, 3)
        for value in self.fill:
            check_int(value, "fill", 0, 255)
        for name, version in check_mapping(self.versions, "versions").items():
            check_text(name, "versions key")
            check_text(version, f"versions {name!r}")
        if (row_bytes := 2 * self.grid.size * self.expert.width) > MAX_ROW_BYTES:
            raise TeacherCacheError(
                f"grid {self.grid} with width {self.expert.width} makes rows of {row_bytes} bytes; "
                f"the format allows {MAX_ROW_BYTES}"
            )

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide numbers, as flat JSON (`expert.name`, `geometry`, ...)."""
        fields = self.to_json()
        expert = fields.pop("expert")
        del expert["licence"]
        flat = {f"expert.{key}": value for key, value in expert.items()}
        return {**flat, **{key: fields[key] for key in fields if key not in _NOT_NUMBERS}}

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of `identity()`; versions, licence and shards do not count."""
        return hashlib.sha256(canonical_json(self.identity())).hexdigest()

    def differences(self, other: Self) -> list[str]:
        """Name the fields that keep a build with `other` from continuing a store of this card."""
        mine = {**self.identity(), "shard_rows": self.shard_rows}
        theirs = {**other.identity(), "shard_rows": other.shard_rows}
        return [
            f"{key} is {mine[key]!r} in the store, {theirs[key]!r} asked for{_OPTIONS.get(key, '')}"
            for key in mine
            if mine[key] != theirs[key]
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, which `from_json` reads back to an equal card."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "expert": self.expert.to_json(),
            "grid": str(self.grid),
            "fill": list(self.fill),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the JSON form.

        Raises:
            TeacherCacheError: a key is missing or unknown, or a value cannot be.
        """
        fields = strict_fields(value, cls.__slots__, "card")
        fill = fields["fill"]
        return cls(
            **{
                **fields,
                "expert": ExpertCard.from_json(fields["expert"]),
                "grid": PatchGrid.parse(fields["grid"]),
                "fill": tuple(fill) if isinstance(fill, list) else fill,
            }
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """An image without a teacher row: its manifest path and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The images that a cache is to hold.

    Attributes:
        content: SHA-256 (hex) of each image file, distinct, in order of first appearance in the
            manifest.
        paths: manifest path -> place in `content`; several paths may hold one content.
        failures: images that could not even be read for hashing.
    """

    content: tuple[str, ...]
    paths: Mapping[str, int] = field(hash=False)
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        check_int(len(self.content), "number of distinct readable images", 0, MAX_ROWS)
        for digest in self.content:
            check_sha256(digest, "content of a row")
        if len(set(self.content)) != len(self.content):
            raise TeacherCacheError("a plan takes every content once, got a digest twice")
        for path, row in check_mapping(self.paths, "paths").items():
            check_relative(path)
            check_int(row, f"row of {path}", 0, len(self.content) - 1)
        if len(set(self.paths.values())) != len(self.content):
            raise TeacherCacheError("every row of a plan takes at least one path")
        check_failures(self.failures)
        for failure in self.failures:
            if failure.path in self.paths:
                raise TeacherCacheError(f"{failure.path} has both a row and a failure")


def check_failures(failures: tuple[Failure, ...]) -> None:
    """Refuse failures that name no path or give no text.

    Raises:
        TeacherCacheError: names the path.
    """
    for failure in failures:
        check_text(failure.path, "path of a failure")
        check_text(failure.reason, f"{failure.path}: reason", empty=True)


def _check_gram_error(codec: str, error: object) -> None:
    if codec != "gram":
        if error is not None:
            raise TeacherCacheError(f"codec {codec} takes no max_gram_error, got {error!r:.80}")
    elif not isinstance(error, float) or not MIN_GRAM_ERROR <= error <= MAX_GRAM_ERROR:
        raise TeacherCacheError(
            f"max_gram_error takes {MIN_GRAM_ERROR} to {MAX_GRAM_ERROR}, got {error!r:.80}"
        )
