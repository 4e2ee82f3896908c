"""Convert an original checkpoint: look at everything, then write shard by shard, then publish."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import torch

from ...runtime.files import file_identity, write_durably
from ..machine import of_bytes
from .checkpoint_families import Original
from .checkpoint_weights import SAFETENSORS_INDEX, Weights
from .conversion_report import setting_facts, tensor_facts
from .describe import as_json, llava_config, rows_to_add, write_card, write_description
from .errors import ConvertError, Stage, read_object
from .model_config import Settings, read_settings
from .output_folder import (
    RECORD,
    Identity,
    Workplace,
    check_place,
    difference,
    identify,
    named_files,
    stamps,
    unchanged,
)
from .safetensors_writer import Written, write_shard
from .tensor_plan import DTYPES, Piece, Plan, check_claims, plan
from .tokenizer import Tokens, read_tokens
from .vision_tower import Choice, Tower, find_tower

_SPARE: Final = 50_000_000
"""Bytes left over for tokenizer and report."""

DtypeName = Literal["keep", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Options of a conversion.

    Attributes:
        vision_tower: a CLIP folder.
        tower_weights: whose tower counts when the checkpoint has one too.
        dtype: of the converted tensors.
        shard_bytes: most bytes of a weight file, unless one tensor is larger.
    """

    vision_tower: Path | None = None
    tower_weights: Choice | None = None
    dtype: DtypeName = "keep"
    shard_bytes: int = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Converted:
    """A finished conversion.

    Attributes:
        out: the folder.
        report: as in its `conversion.json`.
        already: whether an earlier run had made it.
        reused: shards that an interrupted run had finished.
    """

    out: Path
    report: Mapping[str, Any]
    already: bool
    reused: int


def write_shards(
    pieces: Iterable[Piece], limit: int, workplace: Workplace, stage: Stage
) -> tuple[dict[str, tuple[Sequence[Piece], Written]], int]:
    """Write the files that an earlier run did not finish, and the index of all.

    Args:
        pieces: of the model, in order.
        limit: most bytes of a file, unless one tensor is larger.
        workplace: to write into.
        stage: shows how far it is.

    Returns:
        Pieces and result of every file, and how many of them were there already.

    Raises:
        ConvertError: there is too little room, or a tensor is damaged.
        OSError: the disk is full, say.
    """
    groups = _grouped(pieces, limit)
    named = {_file_name(k, len(groups)): group for k, group in enumerate(groups)}
    done = {name: file for name in named if (file := workplace.finished(name)) is not None}
    reused = len(done)
    workplace.keep_only([*done])
    check_room(workplace, sum(p.bytes for name in named if name not in done for p in named[name]))
    written: dict[str, tuple[Sequence[Piece], Written]] = {}
    with stage("converting", sum(p.bytes for group in groups for p in group)) as advance:
        for name, group in named.items():
            if name in done:
                advance(sum(piece.bytes for piece in group))
            else:
                done[name] = write_shard(workplace.folder / name, group, advance)
                workplace.note(name, done[name])
            written[name] = (group, done[name])
    if len(groups) > 1:
        write_durably(workplace.folder / SAFETENSORS_INDEX, as_json(_index(named)))
    return written, reused


def _index(named: Mapping[str, Sequence[Piece]]) -> dict[str, Any]:
    pieces = [piece for group in named.values() for piece in group]
    return {
        "metadata": {"total_size": sum(piece.bytes for piece in pieces)},
        "weight_map": {p.target: name for name, group in named.items() for p in group},
    }


def check_room(workplace: Workplace, size: int) -> None:
    """Look whether the disk has room for what is not written yet.

    Args:
        workplace: to write into.
        size: bytes that are not written yet.

    Raises:
        ConvertError: it does not.
    """
    free, path = shutil.disk_usage(workplace.path).free, workplace.path
    if free < size + _SPARE:
        begun = f"; {path} keeps what is written already" if workplace.begun() else ""
        raise ConvertError(
            f"{path.parent} has {of_bytes(free)} free, what is left to write needs "
            f"{of_bytes(size + _SPARE)}: free some space or choose another --out{begun}"
        )


def _grouped(pieces: Iterable[Piece], limit: int) -> list[tuple[Piece, ...]]:
    """Cut pieces into files of at most `limit` bytes, unless one tensor is larger."""
    files: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if files[-1] and size + piece.bytes > limit:
            files.append([])
            size = 0
        files[-1].append(piece)
        size += piece.bytes
    return [tuple(file) for file in files]


def _file_name(number: int, count: int) -> str:
    """Name of the shard with a number from 0, as transformers names them."""
    if count == 1:
        return "model.safetensors"
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """All that is known before the first byte is written."""

    source: Path
    family: Original
    wish: Wish
    settings: Settings
    weights: Weights
    tower: Tower
    tokens: Tokens
    config: Any
    plan: Plan

    def files(self) -> dict[str, Path]:
        read = [self.settings.path, *self.weights.files, *self.tokens.files]
        if self.tower.folder is not None:
            own = ("config.json", "preprocessor_config.json")
            read += [p for name in own if (p := self.tower.folder / name).is_file()]
        read += [] if self.tower.weights is None else self.tower.weights.files
        return named_files(self.source, read, self.tower.folder)

    def identity(self, sources: Identity) -> dict[str, Any]:
        return {
            "medalign": version("medalign"),
            "family": self.family.name,
            "dtype": self.wish.dtype,
            "shard_bytes": self.wish.shard_bytes,
            "tower": self.tower.origin,
            "sources": sources,
        }


def convert(source: Path, out: Path, family: Original, wish: Wish, stage: Stage) -> Converted:
    """Turn an original checkpoint into a Hugging Face Llava folder.

    Nothing is written before every tensor has its place and there is room. An interrupted
    conversion goes on with the shards that are whole, and ends with the same bytes; a damaged
    source leaves nothing behind.

    Args:
        source: the checkpoint's folder.
        out: folder to make.
        family: of the checkpoint.
        wish: the options.
        stage: shows how far it is.

    Raises:
        ConvertError: the checkpoint, a setting or `out` cannot be used.
        OSError: the disk is full, say.
    """
    check_place(out, source, wish.vision_tower)
    job = _look(source, family, wish)
    workplace = Workplace(out)
    check_claims(job.weights, job.tower.weights, job.plan.unused)
    with workplace.held():
        return _convert(job, out, workplace, stage)


def _look(source: Path, family: Original, wish: Wish) -> _Job:
    settings = read_settings(source, family)
    weights = Weights.open(source)
    if weights is None:
        raise ConvertError(f"{source} holds no weights: no safetensors and no pytorch_model*.bin")
    tower = find_tower(settings, weights, wish.vision_tower, wish.tower_weights)
    tokens = read_tokens(source, family)
    config = llava_config(family, settings, weights, tower, tokens)
    rows = rows_to_add(weights, settings, tokens)
    planned = plan(weights, tower, config, rows, DTYPES[wish.dtype])
    config.dtype = config.text_config.dtype = config.vision_config.dtype = _usual(planned.pieces)
    return _Job(
        source=source,
        family=family,
        wish=wish,
        settings=settings,
        weights=weights,
        tower=tower,
        tokens=tokens,
        config=config,
        plan=planned,
    )


def _usual(pieces: Sequence[Piece]) -> torch.dtype:
    """The dtype that most bytes have."""
    sizes: dict[torch.dtype, int] = {}
    for piece in pieces:
        sizes[piece.dtype] = sizes.get(piece.dtype, 0) + piece.bytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def _convert(job: _Job, out: Path, workplace: Workplace, stage: Stage) -> Converted:
    files = job.files()
    known = workplace.known()
    before = stamps(files)
    if (out / RECORD).is_file():  # other options show before gigabytes are read
        sources = read_object(out / RECORD).get("sources", {})
        _same_conversion(out, job.identity(sources))
    elif not workplace.begun():  # so does too little room
        check_room(workplace, sum(piece.bytes for piece in job.plan.pieces))
    with stage("checking the source", sum(size for size, _ in before.values())) as advance:
        sources = identify(files, known, advance)
    identity = job.identity(sources)
    if (out / RECORD).is_file():
        report = _same_conversion(out, identity)
        shutil.rmtree(workplace.path)
        return Converted(out, report, already=True, reused=0)
    if workplace.begun() and (what := difference(known, identity)):
        raise ConvertError(
            f"{workplace.path} holds an unfinished conversion of something else ({what}); delete "
            "it to begin anew"
        )
    workplace.write_down({**identity, "stamps": before})
    written, reused = write_shards(job.plan.pieces, job.wish.shard_bytes, workplace, stage)
    unchanged(files, before)
    report = _describe(job, identity, workplace.folder, written)
    workplace.publish(out)
    return Converted(out, report, already=False, reused=reused)


def _same_conversion(out: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read the report of a finished conversion, and refuse one of something else."""
    report = read_object(out / RECORD)
    if what := difference(report, identity):
        raise ConvertError(
            f"--out {out} holds a conversion of something else ({what}); choose another folder"
        )
    return report


def _describe(
    job: _Job,
    identity: Mapping[str, Any],
    folder: Path,
    written: Mapping[str, tuple[Sequence[Piece], Written]],
) -> dict[str, Any]:
    write_description(folder, job.config, job.settings, job.tower, job.tokens, job.family)
    rows = rows_to_add(job.weights, job.settings, job.tokens)
    report = {
        **identity,
        "title": job.family.title,
        "source": job.source.resolve().name,
        "transformers": version("transformers"),
        **tensor_facts(job.plan, job.weights, job.tower, written),
        **setting_facts(job.settings, job.tower, job.tokens, rows),
    }
    write_card(folder, job.source, report)
    others = sorted(p for p in folder.iterdir() if p.name not in written)
    report["others"] = {path.name: file_identity(path) for path in others}
    write_durably(folder / RECORD, as_json(report))
    return report
