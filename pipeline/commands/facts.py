"""How a build and a cache read on the screen: aligned facts, the same on a terminal or piped."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from ...runtime.text import Fact, aligned, plural
from ...teacher_cache.certificate import floored, read_certificate

if TYPE_CHECKING:
    from ...runtime.parts import Part
    from ...teacher_cache.audit import CacheStatus
    from ...teacher_cache.certificate import Certificate
    from ...teacher_cache.damage import Damage
    from ...teacher_cache.gram.gram_error import GramErrors
    from ...teacher_cache.schema import Failure
    from ..build import BuildReport

FAILURES_SHOWN = 10
"""How many failures are listed before the rest is counted."""

_STATES = {
    "sealed": "sealed",
    "building": "building, not for training yet",
    "growing": "sealed and growing: the new rows are not for training yet",
}


def print_facts(facts: Iterable[Fact]) -> None:
    """Print one line per fact."""
    for line in aligned(facts):
        typer.echo(line)


def build_facts(report: "BuildReport", part: "Part", command: str) -> Iterator[Fact]:
    """Say what a build did, what it left, and the next commands; `command` builds what is left."""
    from ...teacher_cache.damage import advice

    yield "store", str(report.store)
    images = f"{report.images} in {plural(report.records, 'record')}"
    yield "images", f"{images}, {report.distinct} distinct and readable"
    if strangers := report.rows - report.led_to:
        yield "rows", f"{report.rows} in the store, {strangers} of other images than these"
    if report.text_only:
        yield "text only", f"{plural(report.text_only, 'record')} without an image; no row needed"
    yield "shards", _shards(report)
    if report.encoded:
        rate = report.encoded / max(report.seconds, 1e-9)
        seconds = f"{report.seconds:.1f} s, {rate:.1f} images/s"
        yield "this run", f"{plural(report.encoded, 'row')} in {seconds}"
    yield "size", size(report.size_bytes)
    yield from error_facts(report.gram_error)
    yield from failure_facts(report.failures, report.never_read)
    seal = f"medalign cache seal {shlex.quote(str(report.store))}"
    if report.damages:
        yield from _damage_facts(report.damages)
        for line in advice(report.store, report.damages):
            yield "next", line
    elif report.sealed:
        yield "next", "nothing; the cache is sealed"
    elif not report.pending:
        yield "next", seal
    else:
        others = "the other parts, or for all that is left: " if part.count > 1 else ""
        yield "next", f"{others}{command}"
        yield "then", seal


def status_facts(status: "CacheStatus") -> Iterator[Fact]:
    """Say how far a cache is, and the commands that finish it."""
    from ...teacher_cache.damage import Remedy, advice

    yield "store", str(status.store)
    yield "state", _STATES.get(status.state, status.state)
    yield "rows", f"{status.rows_written} of {status.rows} written{_undecoded(status)}"
    yield (
        "shards",
        ", ".join(
            [f"{status.complete} of {status.shards} complete"]
            + [f"{len(shards)} {state}" for state, shards in _unfinished(status)]
        ),
    )
    for state, shards in _unfinished(status):
        # "damaged 0" would read as none
        yield state, f"number{'s' * (len(shards) != 1)} {some_numbers(shards)}, counted from 0"
    yield from failure_facts(status.failures, status.never_read)
    yield from _damage_facts(status.damages)
    if any(damage.remedy is Remedy.COPY for damage in status.damages):
        yield "first", next(advice(status.store, status.damages))
    yield from zip(("next", "then", "then"), status.commands, strict=False)


def _damage_facts(damages: "Sequence[Damage]") -> Iterator[Fact]:
    for damage in damages[:FAILURES_SHOWN]:
        yield "damage", str(damage)
    if len(damages) > FAILURES_SHOWN:
        yield "", f"... and {len(damages) - FAILURES_SHOWN} more"


def info_facts(info: Mapping[str, Any]) -> Iterator[Fact]:
    """Say what a cache holds and where it came from."""
    from ...teacher_cache.gram.gram_error import read_errors
    from ...teacher_cache.schema import Failure

    card = info["card"]
    expert = card["expert"]
    yield "store", info["store"]
    yield "state", info["state"]
    yield "rows", f"{info['rows']} in {plural(info['shards'], 'shard')} of {card['shard_rows']}"
    yield "size", size(info["size_bytes"])
    yield "expert", f"{expert['name']} ({expert['architecture']})"
    yield "weights", f"sha256 {expert['weights_sha256']}"
    yield "patches", f"{expert['features']}, width {expert['width']}, grid {expert['grid']}"
    yield "student", f"grid {card['grid']}, geometry {card['geometry']}, mode {card['mode']}"
    yield "computed", f"{card['dtype']}, {card['interpolation']}, stored as {card['codec']}"
    yield from error_facts(read_errors(info["gram_error"]))
    yield "licence", expert["licence"] or "not stated"
    yield "versions", ", ".join(f"{name} {text}" for name, text in card["versions"].items())
    yield "fingerprint", info["fingerprint"]
    yield "content", info["content_hash"] or "not sealed yet"
    if info["content_hash"]:
        yield from certificate_facts(read_certificate(info["certificate"]))
    yield from failure_facts(
        [Failure(*failure) for failure in info["failures"]], info["never_read"]
    )


def error_facts(errors: "GramErrors | None") -> Iterator[Fact]:
    """Say how far stored similarities are from the expert's; nothing with codec `fp16`."""
    if errors is not None:
        yield "Gram error", f"RMS {errors.rms:.1e}, {errors.largest_rms:.1e} in the worst image"
        yield "", f"at most {errors.largest:.1e} in a pair; adds {errors.l_vis:.1e} to L_vis"


def certificate_facts(
    certificate: "Certificate | None", name: str = "certificate"
) -> Iterator[Fact]:
    """Say what recomputing rows showed, and what was allowed."""
    if certificate is None:
        yield name, "none: no rows were recomputed when it was sealed"
        return
    deviation, limit = certificate.deviation, certificate.tolerance
    rows = plural(len(certificate.rows), "row")
    yield name, f"{rows} recomputed, {certificate.date[:10]}, seed {certificate.seed}"
    yield "", f"in {certificate.dtype} on {certificate.device}"
    if deviation.cosine is not None:
        yield "", f"cosine at least {floored(deviation.cosine)} (limit {floored(limit.cosine)})"
    yield "", f"Gram error at most {deviation.gram:.1e} (limit {limit.gram:.1e})"
    share = f"{deviation.attention_share:.1e} of its largest (limit {limit.attention:.1e})"
    yield "", f"attention error at most {deviation.attention:.1e}, {share}"
    yield "", f"worst in row {certificate.worst_row}, {certificate.worst_path}"
    if certificate.skipped:
        yield "", f"{plural(len(certificate.skipped), 'drawn row')} could not be recomputed"
    for row in certificate.skipped[:FAILURES_SHOWN]:
        yield "", f"  row {row.row}, {row.path}: {row.reason}"


def failure_facts(failures: Sequence["Failure"], never_read: int | None = None) -> Iterator[Fact]:
    """List the first failures and count the rest; nothing when there are none.

    Args:
        failures: images without a row to read.
        never_read: how many of them, the first ones, were no readable file in the first place;
            None where that is not known.
    """
    if not failures:
        return
    count = len(failures)
    parts = ["without a row to read"]
    if never_read is not None:
        kinds = ((never_read, "not readable as files"), (count - never_read, "not decodable"))
        parts = [f"{many} {what}" for many, what in kinds if many]
    yield "unreadable", f"{plural(count, 'image')}: {', '.join(parts)}"
    for failure in failures[:FAILURES_SHOWN]:
        yield "", f"{failure.path}: {failure.reason}"
    if count > FAILURES_SHOWN:
        yield "", f"... and {count - FAILURES_SHOWN} more (cache status --json lists all)"


def some_numbers(numbers: Sequence[int]) -> str:
    """Write the first few numbers and count the rest."""
    more = f" and {len(numbers) - FAILURES_SHOWN} more" if len(numbers) > FAILURES_SHOWN else ""
    return ", ".join(map(str, numbers[:FAILURES_SHOWN])) + more


def size(count: int) -> str:
    """Write a number of bytes for people."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _shards(report: "BuildReport") -> str:
    there = report.shards - report.pending
    if not report.written:
        return f"{there} of {report.shards} are there; nothing to do in this run"
    return f"{there} of {report.shards} are there, {report.written} written by this run"


def _unfinished(status: "CacheStatus") -> list[tuple[str, Sequence[int]]]:
    states = (("pending", status.pending), ("damaged", status.damaged))
    return [(state, shards) for state, shards in states if shards]


def _undecoded(status: "CacheStatus") -> str:
    if not status.rows_failed:
        return ""
    text = f"; {status.rows_failed} of them without data, as the image could not be decoded"
    if status.rows_left:
        text += f", and no path leads to {status.rows_left} of these any more"
    return text
