"""The `medalign cache` commands: build, status, info; the others are beside it.

Everything heavy is imported inside a command, so that `medalign --help` answers at once.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...runtime.text import plural
from .arguments import FAILED, INTERRUPTED, Json, Store, quoted, retyped
from .cache_checks import seal_command, verify_command
from .cache_copies import diff_command, merge_command, subset_command
from .facts import build_facts, info_facts, print_facts, status_facts

if TYPE_CHECKING:
    from ...teacher_cache.schema import CacheCard

_GRAM_ERROR = 1e-3

cache = typer.Typer(
    no_args_is_help=True, help="Run the expert once over all images, and keep what it sees."
)


@cache.command("build")
def build_command(
    context: typer.Context,
    manifest: Annotated[
        Path, typer.Argument(help="JSON Lines or LLaVA's JSON array.", show_default=False)
    ],
    images: Annotated[
        Path, typer.Option(help="Folder that image paths are relative to.", show_default=False)
    ],
    expert: Annotated[
        str,
        typer.Option(
            help="unimed-l, unimed-b, biomedclip, demo, openclip:ARCH, or a folder with "
            "open_clip_config.json.",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder or URL of the cache.", show_default=False)],
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint file or folder; never downloaded.")
    ] = None,
    grid: Annotated[str, typer.Option(help="Patch grid of the student.")] = "24x24",
    geometry: Annotated[
        Literal["pad", "crop", "stretch"] | None,
        typer.Option(help="How the student makes an image square.", show_default="pad"),
    ] = None,
    mode: Annotated[
        Literal["aligned", "paper"],
        typer.Option(help="aligned: the expert sees the student's square. paper: it crops."),
    ] = "aligned",
    features: Annotated[
        Literal["last", "ln_post"], typer.Option(help="Patches before or after ln_post.")
    ] = "last",
    alpha: Annotated[
        Literal["black", "white"], typer.Option(help="Colour behind transparent pixels.")
    ] = "black",
    codec: Annotated[
        Literal["fp16", "gram"] | None,
        typer.Option(
            help="fp16: patch features. gram: their similarities, many times smaller.",
            show_default="fp16, or the store's own",
        ),
    ] = None,
    max_gram_error: Annotated[
        float | None,
        typer.Option(
            help="RMS error that codec gram may make in an image's similarities.",
            show_default="0.001 with codec gram, or the store's own",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(help="Build share I/N only.", show_default="from Slurm or RANK, else all"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 32,
    shard_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows in one file.", show_default="64, or the store's own"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode.", show_default="CPUs, at most 8"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    dtype: Annotated[
        Literal["bf16", "fp32"] | None,
        typer.Option(help="What the expert computes in.", show_default="bf16 on a GPU, else fp32"),
    ] = None,
    on_error: Annotated[
        Literal["skip", "fail"], typer.Option(help="What an unreadable image does.")
    ] = "skip",
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Look for known images whose bytes changed.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Decode images again that could not be decoded.")
    ] = False,
) -> None:
    """Fill a cache; run the same command again to go on after any interruption.

    Images that a cache does not know yet are added to it, and nothing that is
    there is moved.
    """
    from ...runtime.signals import held_back

    origin = retyped(context)
    command = quoted(origin.command) if origin else "the same command"
    with _resumable(out, command):
        with held_back():
            from ...runtime.parts import Part
            from ...runtime.processes import default_workers
            from ...runtime.progress import ConsoleProgress
            from ...teacher_cache.schema import PatchGrid
            from ...teacher_cache.storage.local import open_storage
            from ...teacher_cache.writer import TeacherCacheWriter, check_begun
            from ..build import BuildError, BuildOptions, build, check_folders
            from ..build_options import with_options
            from ..experts import describe, load_asked

        if mode == "paper" and geometry not in (None, "crop"):
            raise BuildError("mode paper always crops the expert's input; leave --geometry away")
        check_folders(manifest, images, out)  # before a gigabyte of weights is read
        card = TeacherCacheWriter.load_card(out)
        if shard_rows is None:
            shard_rows = 64 if card is None else card.shard_rows
        options = BuildOptions(
            grid=PatchGrid.parse(grid),
            geometry=geometry or "pad",
            mode=mode,
            alpha=alpha,
            shard_rows=shard_rows,
            batch_size=batch_size,
            workers=default_workers() if workers is None else workers,
            max_gram_error=_gram_error(codec, max_gram_error, card),
            part=Part.parse(part) if part else Part.from_environment(os.environ),
            on_error=on_error,
            rehash=rehash,
            retry=retry,
        )
        if card is not None:
            check_begun(open_storage(out), card, with_options(card, options, features))
        progress = ConsoleProgress()
        if options.part.source:
            progress.say(f"part {options.part}, by {options.part.source}")
        tower = load_asked(expert, weights, features, device, dtype)
        progress.say(describe(tower))
        report = build(manifest, images, out, tower, options, origin=origin, progress=progress)
    print_facts(build_facts(report, options.part, command))
    if report.failures or report.damages:
        raise typer.Exit(FAILED)


@cache.command("status")
def status_command(store: Store, as_json: Json = False) -> None:
    """Say how far a cache is and which images it lacks; reads no data."""
    from ...teacher_cache.audit import status

    found = status(store)
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "next": found.commands}, indent=2))
    else:
        print_facts(status_facts(found))


@cache.command("info")
def info_command(store: Store, as_json: Json = False) -> None:
    """Say what a cache holds, and what made it."""
    from ...teacher_cache.audit import info

    found = info(store)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        print_facts(info_facts(found))


def _gram_error(codec: str | None, asked: float | None, card: "CacheCard | None") -> float | None:
    """Return the error limit that was asked for, else the store's own; None is codec fp16."""
    from ..build import BuildError

    if codec == "fp16" and asked is not None:
        raise BuildError("codec fp16 makes no error to limit; leave --max-gram-error away")
    if asked is not None or codec == "fp16":
        return asked
    stored = None if card is None else card.max_gram_error
    return stored or (_GRAM_ERROR if codec == "gram" else None)


@contextmanager
def _resumable(out: str, command: str) -> Iterator[None]:
    """Say on Ctrl-C, SIGTERM and SIGHUP, whenever they come, what is kept and how to go on."""
    from ...runtime.signals import interruptible

    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        with suppress(OSError):  # after SIGHUP the terminal may be gone
            typer.echo(f"{_kept(out)}:\n  {command}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _kept(out: str) -> str:
    from ...teacher_cache.audit import status
    from ...teacher_cache.schema import TeacherCacheError

    try:
        found = status(out)
    except TeacherCacheError:
        return f"stopped before anything was written to {out}; to begin again"
    return (
        f"stopped; {found.complete} of {plural(found.shards, 'shard')} are written in {out} and "
        "stay; to go on"
    )


cache.command("seal")(seal_command)
cache.command("verify")(verify_command)
cache.command("merge")(merge_command)
cache.command("subset")(subset_command)
cache.command("diff")(diff_command)
