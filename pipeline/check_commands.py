"""`medalign cache seal` and `verify`: is the cache what was written, and what the expert says?

Everything heavy is imported inside a command, so that `medalign --help` answers at once.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .command_options import FAILED, Json, Store
from .report import certificate_facts, failure_facts, plural, print_facts, some_numbers

if TYPE_CHECKING:
    from ..teacher_cache.certificate import Certificate
    from ..teacher_cache.reader import TeacherCache
    from ..teacher_cache.seal import Certify
    from .recheck import Recheck

Images = Annotated[
    Path | None,
    typer.Option(help="Folder of the images.", show_default="where the build found them"),
]
ExpertName = Annotated[
    str | None, typer.Option(help="The expert.", show_default="what the build was told")
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Its checkpoint.", show_default="where the build found it"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Dtype = Annotated[
    Literal["bf16", "fp32"] | None,
    typer.Option(help="What to recompute in.", show_default="what the build computed in"),
]
Seed = Annotated[int, typer.Option(min=0, help="Which rows are drawn.")]


def seal_command(
    store: Store,
    recompute: Annotated[
        int, typer.Option(min=0, help="Rows to recompute for the certificate; 0 for none.")
    ] = 16,
    images: Images = None,
    expert: ExpertName = None,
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
) -> None:
    """Check every shard, recompute some rows with the expert, and finish the cache.

    Training takes sealed caches only. Rows that are not what the expert says keep it unsealed.
    """
    from ..teacher_cache.audit import seal, status
    from ..teacher_cache.certificate import read_certificate
    from ..teacher_cache.reader import TeacherCache
    from .recheck import Recheck

    now = status(store)
    certify = None
    # A cache that lacks shards says so at once, before an expert is loaded.
    if recompute and now.state != "sealed" and now.complete == now.shards:
        asked = Recheck(
            rows=recompute,
            seed=seed,
            images=images,
            expert=expert,
            weights=weights,
            device=device,
            dtype=dtype,
        )
        certify = _certifier(TeacherCache.open(store, allow_building=True), asked)
    with _shards("sealing") as progress:
        report = seal(store, progress, certify=certify)
    done = "was sealed before" if report.already else "sealed"
    print_facts(
        [
            ("store", f"{report.store} {done}"),
            ("rows", f"{report.rows} in {report.shards} shards"),
            ("content", report.content_hash),
            *certificate_facts(read_certificate(report.certificate)),
            *failure_facts(now.failures, now.never_read),
        ]
    )


def verify_command(
    store: Store,
    as_json: Json = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="Make damaged shards pending, for the next build.")
    ] = False,
    recompute: Annotated[
        int, typer.Option(min=0, help="Also recompute so many rows with the expert.")
    ] = 0,
    images: Images = None,
    expert: ExpertName = None,
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
) -> None:
    """Read every byte and list what is not as it was written; exit 1 if anything is.

    With --recompute also say whether rows are what the expert says, within the tolerance of the
    certificate; exit 1 if not.
    """
    from ..teacher_cache.audit import verify
    from .recheck import Recheck

    asked = Recheck(
        rows=recompute,
        seed=seed,
        images=images,
        expert=expert,
        weights=weights,
        device=device,
        dtype=dtype,
    )
    with _shards("verifying") as progress:
        damages = verify(store, progress)
    # Damaged rows are no measure of the expert.
    found = _recompute(store, asked) if recompute and not damages else None
    outside = found.outside() if found else []
    if as_json:
        listed = [{"where": each.where, "reason": each.reason} for each in damages]
        recomputed = found.to_json() if found else None
        answer = {"damages": listed, "recomputed": recomputed, "outside": outside}
        typer.echo(json.dumps(answer, indent=2))
    else:
        for damage in damages:
            typer.echo(str(damage))
        typer.echo(f"{len(damages)} damaged" if damages else _sound(store))
        _print_recomputed(found, outside)
    if damages:
        _mend(store, mend=mend, quiet=as_json)
    if damages or outside:
        raise typer.Exit(FAILED)


def _certifier(cache: "TeacherCache", asked: "Recheck") -> "Certify":
    from .asked_expert import describe
    from .certificate import certifier
    from .progress import ConsoleProgress
    from .recheck import images_and_expert

    progress = ConsoleProgress(unit="rows")
    images, expert = images_and_expert(cache, asked)
    progress.say(describe(expert))
    return certifier(images, expert, rows=asked.rows, seed=asked.seed, progress=progress)


def _recompute(store: str, asked: "Recheck") -> "Certificate":
    from ..teacher_cache.reader import TeacherCache
    from .asked_expert import describe
    from .certificate import recompute
    from .progress import ConsoleProgress
    from .recheck import images_and_expert

    progress = ConsoleProgress(unit="rows")
    cache = TeacherCache.open(store, allow_building=True)
    images, expert = images_and_expert(cache, asked)
    progress.say(describe(expert))
    return recompute(cache, images, expert, rows=asked.rows, seed=asked.seed, progress=progress)


def _print_recomputed(found: "Certificate | None", outside: list[str]) -> None:
    if found is None:
        return
    print_facts(certificate_facts(found, "recomputed"))
    for each in outside:
        typer.echo(f"outside the tolerance, row {found.worst_row} ({found.worst_path}): {each}")


def _mend(store: str, *, mend: bool, quiet: bool) -> None:
    from ..teacher_cache.audit import reopen, status

    if mend:
        shards = reopen(store)
        some = f": {some_numbers(shards)}" if shards else ""
        typer.echo(f"{plural(len(shards), 'shard')} pending again{some}", err=True)
        for command in status(store).commands:
            typer.echo(f"next  {command}", err=True)
    elif not quiet:
        typer.echo("--mend makes damaged shards pending, so that the next build mends them")


def _sound(store: str) -> str:
    from ..teacher_cache.audit import status

    found = status(store)
    if found.complete == found.shards:
        return f"{store}: all as it was written"
    return (
        f"{store}: {found.complete} of {found.shards} shards are there, all as they were written; "
        "the others are pending"
    )


@contextmanager
def _shards(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress over shards, as `seal` and `verify` tell it: done, of how many."""
    from .progress import ConsoleProgress

    with ConsoleProgress(unit="shards").counting(what) as told:
        yield told
