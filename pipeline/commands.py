"""The `medalign cache` commands: build, status, seal, verify, info.

Everything heavy is imported inside a command, so that `medalign --help` answers at once.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .copy_commands import merge_command, subset_command

if TYPE_CHECKING:
    from .experts import Expert

cache = typer.Typer(
    no_args_is_help=True, help="Run the expert once over all images, and keep what it sees."
)

FAILED = 1
INTERRUPTED = 130

Store = Annotated[str, typer.Argument(help="Folder or URL of the cache.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@cache.command("build")
def build_command(
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

    Images that a cache does not know yet are added to it, and nothing that is there is moved.
    """
    with _resumable(out):
        from ..teacher_cache.schema import PatchGrid
        from ..teacher_cache.writer import TeacherCacheWriter
        from .build import BuildError, BuildOptions, build, check_folders
        from .parts import Part
        from .progress import ConsoleProgress
        from .report import build_facts
        from .workers import default_workers

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
            part=Part.parse(part) if part else Part.from_environment(os.environ),
            on_error=on_error,
            rehash=rehash,
            retry=retry,
        )
        progress = ConsoleProgress()
        if options.part.source:
            progress.say(f"part {options.part}, by {options.part.source}")
        tower = _load(expert, weights, features, device, dtype)
        progress.say(_describe(tower))
        report = build(manifest, images, out, tower, options, progress=progress)
    _print(build_facts(report, options.part))
    if report.failures:
        raise typer.Exit(FAILED)


@cache.command("status")
def status_command(store: Store, as_json: Json = False) -> None:
    """Say how far a cache is and which images it lacks; reads no data."""
    from ..teacher_cache.audit import status
    from .report import status_facts

    found = status(store)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print(status_facts(found))


@cache.command("seal")
def seal_command(store: Store) -> None:
    """Check every shard and finish the cache; training takes sealed caches only."""
    from ..teacher_cache.audit import seal
    from .report import failure_facts

    with _shards("sealing") as progress:
        report = seal(store, progress)
    done = "was sealed before" if report.already else "sealed"
    _print(
        [
            ("store", f"{report.store} {done}"),
            ("rows", f"{report.rows} in {report.shards} shards"),
            ("content", report.content_hash),
            *failure_facts(report.failures),
        ]
    )


@cache.command("verify")
def verify_command(
    store: Store,
    as_json: Json = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="Make damaged shards pending, for the next build.")
    ] = False,
) -> None:
    """Read every byte and list what is not as it was written; exit 1 if anything is."""
    from ..teacher_cache.audit import reopen, verify
    from .report import some_numbers

    with _shards("verifying") as progress:
        damages = verify(store, progress)
    if as_json:
        typer.echo(json.dumps([{"where": each.where, "reason": each.reason} for each in damages]))
    else:
        for damage in damages:
            typer.echo(str(damage))
        typer.echo(f"{len(damages)} damaged" if damages else _sound(store))
    if not damages:
        return
    if mend:
        shards = reopen(store)
        typer.echo(f"pending again: {some_numbers(shards) or 'none'}; build, then seal", err=True)
    elif not as_json:
        typer.echo("--mend makes damaged shards pending, so that the next build mends them")
    raise typer.Exit(FAILED)


@cache.command("info")
def info_command(store: Store, as_json: Json = False) -> None:
    """Say what a cache holds, and what made it."""
    from ..teacher_cache.audit import info
    from .report import info_facts

    found = info(store)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(info_facts(found))


@contextmanager
def _resumable(out: str) -> Iterator[None]:
    """Say on Ctrl-C, whenever it comes, that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            f"stopped; what is written in {out} stays: run the same command to go on", err=True
        )
        raise typer.Exit(INTERRUPTED) from None


def _sound(store: str) -> str:
    from ..teacher_cache.audit import status

    found = status(store)
    if found.complete == found.shards:
        return f"{store}: all as it was written"
    return (
        f"{store}: {found.complete} of {found.shards} shards are there, all as they were written; "
        "the others are pending"
    )


def _load(
    name: str,
    weights: Path | None,
    features: Literal["last", "ln_post"],
    device: str,
    dtype: Literal["bf16", "fp32"] | None,
) -> "Expert":
    import torch

    from .experts import load_expert

    if device == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        count = torch.cuda.device_count()
        device = f"cuda:{local % count}" if count else "cpu"
    narrow = dtype == "bf16" or (dtype is None and device.startswith("cuda"))
    kind = torch.bfloat16 if narrow else torch.float32
    return load_expert(name, weights, features=features, device=device, dtype=kind)


def _describe(expert: "Expert") -> str:
    card = expert.card
    kind = str(expert.dtype).removeprefix("torch.")
    return (
        f"expert {card.name}: {card.image_size} px, {card.grid} patches of width {card.width}, "
        f"{kind} on {expert.device}"
    )


def _print(facts: Iterable[tuple[str, str]]) -> None:
    from .report import aligned

    for line in aligned(facts):
        typer.echo(line)


@contextmanager
def _shards(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress over shards, as `seal` and `verify` tell it: done, of how many."""
    from .progress import ConsoleProgress

    with ConsoleProgress(unit="shards").counting(what) as told:
        yield told


cache.command("merge")(merge_command)
cache.command("subset")(subset_command)
