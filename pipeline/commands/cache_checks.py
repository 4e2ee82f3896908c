"""`medalign cache seal` and `verify`: is the cache what was written, and what the expert says?

Everything heavy is imported inside a command, so that `medalign --help` answers at once.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...runtime.text import plural
from .arguments import FAILED, Json, Store
from .facts import certificate_facts, failure_facts, print_facts, some_numbers

if TYPE_CHECKING:
    from ...teacher_cache.audit import CacheStatus
    from ...teacher_cache.certificate import Certificate
    from ...teacher_cache.damage import Damage
    from ...teacher_cache.reader import TeacherCache
    from ...teacher_cache.seal import Certify
    from ..recompute import Recheck

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
    context: typer.Context,
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

    Training takes sealed caches only. Rows that are not what the expert says
    keep it unsealed. A cache that is sealed already is looked over, and gets a
    certificate if it has none.
    """
    from ...runtime.signals import held_back

    with held_back():
        from ...teacher_cache.audit import status
        from ...teacher_cache.certificate import read_certificate
        from ...teacher_cache.seal import seal
        from ..recompute import CertificateError, Recheck

    now, again, certify = status(store), "", None
    asked = Recheck(
        rows=recompute,
        seed=seed,
        images=images,
        expert=expert,
        weights=weights,
        device=device,
        dtype=dtype,
    )
    with _shards("sealing") as progress:
        try:
            # A cache that lacks shards or is damaged says so at once, before an expert is loaded.
            if recompute and now.complete == now.shards and not now.damages:
                certify = _missing_certifier(store, now, asked)
            report = seal(store, progress, certify=certify)
        except CertificateError as error:
            if now.state != "sealed" or _is_asked_for(context):
                raise
            typer.echo(f"no certificate: {error}", err=True)
            certify, report = None, seal(store)
    if report.already:
        again = " before, certified now" if certify else " before; nothing is missing"
    print_facts(
        [
            ("store", f"{report.store} {'was ' * report.already}sealed{again}"),
            ("rows", f"{report.rows} in {plural(report.shards, 'shard')}"),
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

    With --recompute also say whether rows are what the expert says, within the
    tolerance of the certificate; exit 1 if not.
    """
    from ...runtime.signals import held_back

    with held_back():
        from ...teacher_cache.audit import verify
        from ..recompute import Recheck

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
        _mend(store, damages, mend=mend, quiet=as_json)
    if damages or outside:
        raise typer.Exit(FAILED)


def _certifier(cache: "TeacherCache", asked: "Recheck") -> "Certify":
    from ...runtime.progress import ConsoleProgress
    from ..experts import describe
    from ..recompute import certifier, images_and_expert

    progress = ConsoleProgress(unit="rows")
    images, expert = images_and_expert(cache, asked)
    progress.say(describe(expert))
    return certifier(images, expert, rows=asked.rows, seed=asked.seed, progress=progress)


def _is_asked_for(context: typer.Context) -> bool:
    """Say whether a certificate was asked for in words, rather than by the default."""
    names = ("recompute", "images", "expert", "weights", "device", "dtype", "seed")
    sources = (context.get_parameter_source(name) for name in names)
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def _missing_certifier(store: str, now: "CacheStatus", asked: "Recheck") -> "Certify | None":
    """Return what certifies a cache; None for a sealed one that has its certificate."""
    from ...teacher_cache.reader import TeacherCache

    cache = TeacherCache.open(store, allow_building=True)
    if now.state == "sealed" and cache.certificate is not None:
        return None
    return _certifier(cache, asked)


def _recompute(store: str, asked: "Recheck") -> "Certificate":
    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.reader import TeacherCache
    from ..experts import describe
    from ..recompute import images_and_expert, recompute

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


def _mend(store: str, damages: "Sequence[Damage]", *, mend: bool, quiet: bool) -> None:
    from ...teacher_cache.attributes import load_attributes
    from ...teacher_cache.audit import status
    from ...teacher_cache.damage import Remedy, advice
    from ...teacher_cache.seal import reopen
    from ...teacher_cache.storage.local import open_storage

    place = open_storage(store)
    if not mend or any(each.remedy is Remedy.COPY for each in damages):
        for line in () if quiet and not mend else advice(place, damages):
            typer.echo(line, err=mend)
        return
    attributes = load_attributes(place)
    shards = reopen(place)
    some = f": {some_numbers(shards)}" if shards else ""
    typer.echo(f"{plural(len(shards), 'shard')} pending again{some}", err=True)
    if attributes is not None and attributes.seal and attributes.seal.certificate:
        typer.echo("the certificate went with the seal; the next seal recomputes rows", err=True)
    for command in status(place).commands:
        typer.echo(f"next  {command}", err=True)


def _sound(store: str) -> str:
    from ...teacher_cache.audit import status

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
    from ...runtime.progress import ConsoleProgress

    with ConsoleProgress(unit="shards").counting(what) as told:
        yield told
