"""How a build and a cache read on the screen: aligned facts, the same on a terminal or piped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..teacher_cache.schema import Failure

if TYPE_CHECKING:
    from ..teacher_cache.audit import CacheStatus
    from .build import BuildReport
    from .parts import Part

FAILURES_SHOWN = 10
"""How many failures are listed before the rest is counted."""

Fact = tuple[str, str]


def aligned(facts: Iterable[Fact]) -> Iterator[str]:
    """Yield one line per fact; an empty name goes on below the fact before it."""
    facts = list(facts)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        yield f"{name:<{width}}  {value}".rstrip()


def build_facts(report: "BuildReport", part: "Part") -> Iterator[Fact]:
    """Say what a build did, what it left, and the next command."""
    yield "store", str(report.store)
    images = f"{report.images} in {plural(report.records, 'record')}"
    yield "images", f"{images}, {report.rows} distinct and readable"
    if report.text_only:
        yield "text only", f"{plural(report.text_only, 'record')} without an image; no row needed"
    yield "shards", _shards(report)
    if report.encoded:
        rate = report.encoded / max(report.seconds, 1e-9)
        seconds = f"{report.seconds:.1f} s, {rate:.1f} images/s"
        yield "this run", f"{plural(report.encoded, 'row')} in {seconds}"
    yield "size", size(report.size_bytes)
    yield from failure_facts(report.failures)
    if report.sealed:
        yield "next", "nothing; the cache is sealed"
    elif not report.pending:
        yield "next", f"medalign cache seal {report.store}"
    else:
        others = "the other parts" if part.count > 1 else "the same command"
        yield "next", f"{others}, then: medalign cache seal {report.store}"


def status_facts(status: "CacheStatus") -> Iterator[Fact]:
    """Say how far a cache is, and the next command."""
    yield "store", str(status.store)
    yield "state", status.state
    yield "rows", f"{status.rows_written} of {status.rows} written, {status.rows_failed} unreadable"
    yield "shards", f"{status.complete} of {status.shards} complete"
    if status.pending:
        yield "pending", some_numbers(status.pending)
    if status.damaged:
        yield "damaged", some_numbers(status.damaged)
    yield from failure_facts(status.failures)
    if status.pending or status.damaged:
        yield "next", "the `medalign cache build` that it was begun with"
    elif status.state == "building":
        yield "next", f"medalign cache seal {status.store}"


def info_facts(info: Mapping[str, Any]) -> Iterator[Fact]:
    """Say what a cache holds and where it came from."""
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
    yield "licence", expert["licence"] or "not stated"
    yield "versions", ", ".join(f"{name} {text}" for name, text in card["versions"].items())
    yield "fingerprint", info["fingerprint"]
    yield "content", info["content_hash"] or "not sealed yet"
    yield from failure_facts([Failure(*failure) for failure in info["failures"]])


def failure_facts(failures: Sequence[Failure]) -> Iterator[Fact]:
    """List the first failures and count the rest; nothing when there are none."""
    if not failures:
        return
    count = len(failures)
    yield "unreadable", f"{plural(count, 'image')} without a row"
    for failure in failures[:FAILURES_SHOWN]:
        yield "", f"{failure.path}: {failure.reason}"
    if count > FAILURES_SHOWN:
        yield "", f"... and {count - FAILURES_SHOWN} more (cache status --json lists all)"


def some_numbers(numbers: Sequence[int]) -> str:
    """Write the first few numbers and count the rest."""
    more = f" and {len(numbers) - FAILURES_SHOWN} more" if len(numbers) > FAILURES_SHOWN else ""
    return ", ".join(map(str, numbers[:FAILURES_SHOWN])) + more


def plural(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count} {noun}{'s' * (count != 1)}"


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
