"""The `medalign cache` commands: build, status, info; the others are beside it.

Everything heavy is imported inside a command, so that `medalign --help` and wrong arguments
are answered at once.
"""

import json
import os
import shlex
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from ...runtime import arguments as args
from ...runtime.text import plural
from .cache_checks import seal_command, verify_command
from .cache_copies import diff_command, merge_command, subset_command
from .expert_options import Device, Dtype, Expert, Weights, check_weights
from .facts import build_facts, info_facts, print_facts, status_facts
from .resume import FAILED, origin_of, stopping

if TYPE_CHECKING:
    from ...teacher_cache.schema import CacheCard

_GRAM_ERROR: Final = 1e-3
_SHARD_ROWS: Final = 64

cache = typer.Typer(
    no_args_is_help=True, help="Run the expert once over all images, and keep what it sees."
)


def _no_grid(text: str) -> str:
    from ...teacher_cache.schema import PatchGrid, TeacherCacheError

    try:
        PatchGrid.parse(text)
    except TeacherCacheError:
        return "is no patch grid, which is written like 24x24"
    return ""


def _no_gram_error(text: str) -> str:
    from ...teacher_cache.schema import MAX_GRAM_ERROR, MIN_GRAM_ERROR

    within = MIN_GRAM_ERROR <= float(text) <= MAX_GRAM_ERROR  # False for NaN
    return "" if within else f"is not within {MIN_GRAM_ERROR:g} to {MAX_GRAM_ERROR:g}"


@cache.command(
    "build",
    epilog="Example: medalign cache build train.jsonl --images images --expert unimed-l "
    "--weights unimed.pt --out cache",
)
def build_command(
    context: typer.Context,
    manifest: args.Manifest,
    images: args.Images,
    expert: Expert,
    out: args.OutStore,
    weights: Weights = None,
    grid: Annotated[str, args.option("Patch grid of the student.", problem=_no_grid)] = "24x24",
    geometry: Annotated[
        Literal["pad", "crop", "stretch"] | None,
        args.option("How the student makes an image square.", show_default="pad"),
    ] = None,
    mode: Annotated[
        Literal["aligned", "paper"],
        args.option("aligned: the expert sees the student's square. paper: the expert crops."),
    ] = "aligned",
    features: Annotated[
        Literal["last", "ln_post"], args.option("Patches before or after ln_post.")
    ] = "last",
    alpha: Annotated[
        Literal["black", "white"], args.option("Colour behind transparent pixels.")
    ] = "black",
    codec: Annotated[
        Literal["fp16", "gram"] | None,
        args.option(
            "fp16: patch features. gram: their similarities, many times smaller.",
            show_default="fp16, or the store's own",
        ),
    ] = None,
    max_gram_error: Annotated[
        float | None,
        args.option(
            "Largest RMS error that codec gram may make in similarities.",
            problem=_no_gram_error,
            show_default="0.001 with codec gram, or the store's own",
        ),
    ] = None,
    part: Annotated[
        str | None,
        args.option(
            "Build share I/N only, as 1/4.",
            problem=lambda text: text and args.no_part(text),  # "" is an unset variable of a script
            show_default="from Slurm or RANK, else all",
        ),
    ] = None,
    batch_size: Annotated[int, args.option("Images in one pass.", min=1)] = 32,
    shard_rows: Annotated[
        int | None, args.option("Rows in one file.", min=1, show_default="64, or the store's own")
    ] = None,
    workers: args.Workers = None,
    device: Device = "auto",
    dtype: Dtype = None,
    on_error: Annotated[
        Literal["skip", "fail"], args.option("Skip an unreadable image, or stop at it.")
    ] = "skip",
    rehash: Annotated[
        bool, args.flag("Look for known images whose bytes changed.", "--rehash")
    ] = False,
    retry: Annotated[
        bool, args.flag("Decode images again that could not be decoded.", "--retry")
    ] = False,
) -> None:
    """Fill a cache; after an interruption, the same command continues it.

    Images that the cache does not know yet are added. Rows that are there stay
    where they are.
    """
    from ...runtime.parts import Part
    from ...runtime.signals import held_back
    from ...teacher_cache.schema import PatchGrid

    check_weights(expert, weights)
    if mode == "paper" and geometry not in (None, "crop"):
        raise args.ArgumentError(
            f"--mode paper always crops the expert's input, and --geometry is {geometry}; leave "
            "--geometry away"
        )
    if codec == "fp16" and max_gram_error is not None:
        raise args.ArgumentError(
            "--codec fp16 makes no error for --max-gram-error to limit; leave one of them away"
        )
    student_grid = PatchGrid.parse(grid)
    share = Part.parse(part) if part else Part.from_environment(os.environ)

    origin = origin_of(context)
    command = shlex.join(origin.command) if origin else "the same command"
    with stopping(lambda: f"{_kept(out)}:\n  {command}"):
        with held_back():
            from ...runtime.processes import default_workers
            from ...runtime.progress import ConsoleProgress
            from ...teacher_cache.storage.local import open_storage
            from ...teacher_cache.writer import TeacherCacheWriter, check_begun
            from ..build import build, check_folders
            from ..build_options import BuildOptions, with_options
            from ..experts import describe, load_asked

        check_folders(manifest, images, out)  # before a gigabyte of weights is read
        card = TeacherCacheWriter.load_card(out)
        options = BuildOptions(
            grid=student_grid,
            geometry=geometry or "pad",
            mode=mode,
            alpha=alpha,
            shard_rows=shard_rows or (_SHARD_ROWS if card is None else card.shard_rows),
            batch_size=batch_size,
            workers=default_workers() if workers is None else workers,
            max_gram_error=_gram_error(codec, max_gram_error, card),
            part=share,
            on_error=on_error,
            rehash=rehash,
            retry=retry,
        )
        if card is not None:
            check_begun(open_storage(out), card, with_options(card, options, features))
        progress = ConsoleProgress()
        if share.source:
            progress.say(f"part {share}, by {share.source}")
        tower = load_asked(expert, weights, features, device, dtype)
        progress.say(describe(tower))
        report = build(manifest, images, out, tower, options, origin=origin, progress=progress)
    print_facts(build_facts(report, share, command))
    if report.failures or report.damages:
        raise typer.Exit(FAILED)


@cache.command("status")
def status_command(store: args.Store, as_json: args.Json = False) -> None:
    """Show which shards and images a cache lacks; reads no data."""
    from ...teacher_cache.audit import status

    state = status(store)
    if as_json:
        typer.echo(json.dumps({**state.to_json(), "next": state.commands}, indent=2))
    else:
        print_facts(status_facts(state))


@cache.command("info")
def info_command(store: args.Store, as_json: args.Json = False) -> None:
    """Show what a cache holds, and what made it."""
    from ...teacher_cache.audit import info

    facts = info(store)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        print_facts(info_facts(facts))


cache.command("seal")(seal_command)
cache.command("verify")(verify_command)
cache.command("merge")(merge_command)
cache.command("subset")(subset_command)
cache.command("diff")(diff_command)


def _gram_error(codec: str | None, limit: float | None, card: "CacheCard | None") -> float | None:
    """Return the error limit that the user gave, else the store's own; None is codec fp16."""
    if limit is not None or codec == "fp16":
        return limit
    stored = None if card is None else card.max_gram_error
    return stored or (_GRAM_ERROR if codec == "gram" else None)


def _kept(out: str) -> str:
    from ...teacher_cache.audit import status
    from ...teacher_cache.schema import TeacherCacheError

    try:
        state = status(out)
    except TeacherCacheError:
        return f"stopped before anything was written to {out}; to begin again"
    return (
        f"stopped; {state.complete} of {plural(state.shards, 'shard')} are written in {out} and "
        "stay; to continue"
    )
