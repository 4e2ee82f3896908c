"""`medalign cache seal` and `verify`: is the cache what was written, and what the expert says?

Everything heavy is imported inside a command, so that `medalign --help` answers at once.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ...runtime import arguments as args
from ...runtime.text import plural
from .expert_options import BuildDtype, BuildExpert, BuildWeights, Device, RowSeed
from .facts import certificate_facts, failure_facts, print_facts, some_numbers
from .resume import FAILED

if TYPE_CHECKING:
    from pathlib import Path

    from ...runtime.progress import ConsoleProgress
    from ...teacher_cache.audit import CacheStatus
    from ...teacher_cache.certificate import Certificate
    from ...teacher_cache.damage import Damage
    from ...teacher_cache.reader import TeacherCache
    from ...teacher_cache.seal import Certify
    from ..experts import Expert
    from ..recompute import Recheck


def seal_command(
    context: typer.Context,
    store: args.Store,
    recompute: Annotated[
        int, args.option("Rows to recompute for the certificate; 0 for none.", min=0)
    ] = 16,
    images: args.BuildImages = None,
    expert: BuildExpert = None,
    weights: BuildWeights = None,
    device: Device = "auto",
    dtype: BuildDtype = None,
    seed: RowSeed = 0,
) -> None:
    """Check every shard, recompute some rows with the expert, and finish the cache.

    Training takes sealed caches only. A cache whose rows differ from what the
    expert computes stays unsealed. A sealed cache is checked again, and gets a
    certificate if it has none.
    """
    from ...runtime.signals import held_back
    from ...teacher_cache.audit import status
    from ...teacher_cache.certificate import read_certificate
    from ...teacher_cache.seal import seal

    before = status(store)  # a folder that is no cache is refused before torch is imported
    with held_back():
        from ..recompute import CertificateError, Recheck

    recheck = Recheck(
        rows=recompute,
        seed=seed,
        images=images,
        expert=expert,
        weights=weights,
        device=device,
        dtype=dtype,
    )
    certify = None
    with _shard_progress("sealing") as progress:
        try:
            # Missing shards and damage are reported before an expert is loaded.
            if recompute and before.complete == before.shards and not before.damages:
                certify = _missing_certifier(store, before, recheck)
            report = seal(store, progress, certify=certify)
        except CertificateError as error:
            if before.state != "sealed" or _names_a_recheck(context):
                raise
            typer.echo(f"no certificate: {error}", err=True)
            certify, report = None, seal(store)
    state = "sealed"
    if report.already:
        state = f"was sealed before{', certified now' if certify else '; nothing is missing'}"
    print_facts(
        [
            ("store", f"{report.store} {state}"),
            ("rows", f"{report.rows} in {plural(report.shards, 'shard')}"),
            ("content", report.content_hash),
            *certificate_facts(read_certificate(report.certificate)),
            *failure_facts(before.failures, before.never_read),
        ]
    )


def verify_command(
    store: args.Store,
    as_json: args.Json = False,
    mend: Annotated[
        bool, args.flag("Make damaged shards pending, for the next build.", "--mend")
    ] = False,
    recompute: Annotated[int, args.option("Rows to recompute with the expert as well.", min=0)] = 0,
    images: args.BuildImages = None,
    expert: BuildExpert = None,
    weights: BuildWeights = None,
    device: Device = "auto",
    dtype: BuildDtype = None,
    seed: RowSeed = 0,
) -> None:
    """Read every byte and list what differs from what was written; exit 1 if anything does.

    With --recompute also recompute rows with the expert; exit 1 if they are
    outside the tolerance of the certificate.
    """
    from ...runtime.signals import held_back
    from ...teacher_cache.audit import verify

    with _shard_progress("verifying") as progress:
        damages = verify(store, progress)
    certificate = None
    if recompute and not damages:  # damaged rows are no measure of the expert
        with held_back():
            from ..recompute import Recheck

        recheck = Recheck(
            rows=recompute,
            seed=seed,
            images=images,
            expert=expert,
            weights=weights,
            device=device,
            dtype=dtype,
        )
        certificate = _recompute(store, recheck)
    outside = certificate.outside() if certificate else []
    if as_json:
        listed = [{"where": damage.where, "reason": damage.reason} for damage in damages]
        recomputed = certificate.to_json() if certificate else None
        answer = {"damages": listed, "recomputed": recomputed, "outside": outside}
        typer.echo(json.dumps(answer, indent=2))
    else:
        for damage in damages:
            typer.echo(str(damage))
        typer.echo(f"{len(damages)} damaged" if damages else _sound(store))
        _print_recomputed(certificate, outside)
    if damages:
        _mend(store, damages, mend=mend, quiet=as_json)
    if damages or outside:
        raise typer.Exit(FAILED)


def _names_a_recheck(context: typer.Context) -> bool:
    """Say whether the command line itself asks for a certificate, not only the defaults."""
    names = ("recompute", "images", "expert", "weights", "device", "dtype", "seed")
    sources = (context.get_parameter_source(name) for name in names)
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def _missing_certifier(store: str, status: "CacheStatus", recheck: "Recheck") -> "Certify | None":
    """Return what certifies a cache; None for a sealed one that has its certificate."""
    from ...teacher_cache.reader import TeacherCache
    from ..recompute import certifier

    cache = TeacherCache.open(store, allow_building=True)
    if status.state == "sealed" and cache.certificate is not None:
        return None
    images, expert, progress = _loaded(cache, recheck)
    return certifier(images, expert, rows=recheck.rows, seed=recheck.seed, progress=progress)


def _recompute(store: str, recheck: "Recheck") -> "Certificate":
    from ...teacher_cache.reader import TeacherCache
    from ..recompute import recompute

    cache = TeacherCache.open(store, allow_building=True)
    images, expert, progress = _loaded(cache, recheck)
    return recompute(cache, images, expert, rows=recheck.rows, seed=recheck.seed, progress=progress)


def _loaded(cache: "TeacherCache", recheck: "Recheck") -> "tuple[Path, Expert, ConsoleProgress]":
    """Load the expert of a cache, and say on which device it computes."""
    from ...runtime.progress import ConsoleProgress
    from ..experts import describe
    from ..recompute import images_and_expert

    progress = ConsoleProgress(unit="rows")
    images, expert = images_and_expert(cache, recheck)
    progress.say(describe(expert))
    return images, expert, progress


def _print_recomputed(certificate: "Certificate | None", outside: list[str]) -> None:
    if certificate is None:
        return
    print_facts(certificate_facts(certificate, "recomputed"))
    row = f"row {certificate.worst_row} ({certificate.worst_path})"
    for excess in outside:
        typer.echo(f"outside the tolerance, {row}: {excess}")


def _mend(path: str, damages: "Sequence[Damage]", *, mend: bool, quiet: bool) -> None:
    from ...teacher_cache.attributes import load_attributes
    from ...teacher_cache.audit import status
    from ...teacher_cache.damage import Remedy, advice
    from ...teacher_cache.seal import reopen
    from ...teacher_cache.storage.local import open_storage

    store = open_storage(path)
    if not mend or any(damage.remedy is Remedy.COPY for damage in damages):
        for line in () if quiet and not mend else advice(store, damages):
            typer.echo(line, err=mend)
        return
    attributes = load_attributes(store)
    shards = reopen(store)
    numbers = f": {some_numbers(shards)}" if shards else ""
    typer.echo(f"{plural(len(shards), 'shard')} pending again{numbers}", err=True)
    if attributes is not None and attributes.seal and attributes.seal.certificate:
        typer.echo("the certificate is gone with the seal; the next seal recomputes rows", err=True)
    for command in status(store).commands:
        typer.echo(f"next  {command}", err=True)


def _sound(store: str) -> str:
    from ...teacher_cache.audit import status

    state = status(store)
    if state.complete == state.shards:
        return f"{store}: all as it was written"
    return (
        f"{store}: {state.complete} of {state.shards} shards are there, all as they were written; "
        "the others are pending"
    )


@contextmanager
def _shard_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress over shards; `seal` and `verify` report how many of how many are done."""
    from ...runtime.progress import ConsoleProgress

    with ConsoleProgress(unit="shards").counting(what) as report:
        yield report
