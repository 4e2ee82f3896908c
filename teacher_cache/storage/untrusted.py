"""Values that came from a file are checked before anybody believes them."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

MAX_TEXT = 2**20
MAX_ROWS = 2**31 - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


class TeacherCacheError(ValueError):
    """A teacher cache is missing, unfinished, damaged, or not the one that was asked for."""


class DamagedError(TeacherCacheError):
    """A file of a cache does not hold the bytes that were written."""

    exit_code = 1


@contextlib.contextmanager
def within(where: str) -> Iterator[None]:
    """Let errors of a block say where the value that they are about was found."""
    try:
        yield
    except TeacherCacheError as error:
        raise type(error)(f"{where}: {error}") from error


def canonical_json(value: object) -> bytes:
    """Write JSON with one spelling per value, so that it can be hashed; ASCII only.

    Raises:
        DamagedError: a number is NaN or infinite, or the value is nested too deeply.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"not a value that JSON can hold: {error}") from error
    return text.encode("ascii")


def strict_fields(
    value: object, names: Collection[str], where: str, optional: Collection[str] = ()
) -> dict[str, Any]:
    """Return `value` as a dict with exactly the keys `names`, and perhaps those of `optional`.

    Raises:
        TeacherCacheError: not a JSON object, or a key is missing or unknown.
    """
    fields = check_mapping(value, where)
    missing = sorted(set(names) - set(fields))
    unknown = sorted(set(fields) - set(names) - set(optional))
    if missing or unknown:
        raise TeacherCacheError(f"{where}: missing keys {missing}, unknown keys {unknown}")
    return dict(fields)


def check_sha256(value: object, name: str) -> str:
    """Return `value` if it is a SHA-256 digest of 64 lower-case hex digits.

    Raises:
        TeacherCacheError: it is not.
    """
    if not isinstance(value, str) or not is_sha256(value):
        raise TeacherCacheError(f"{name} takes 64 lower-case hex digits, got {value!r:.80}")
    return value


def is_sha256(text: str) -> bool:
    """Say whether `text` is a SHA-256 digest of 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


def check_mapping(value: object, where: str) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, which is what a JSON object becomes."""
    if not isinstance(value, Mapping):
        raise TeacherCacheError(f"{where} takes a JSON object, got {value!r:.80}")
    return value


def check_type(value: object, name: str, kind: type) -> None:
    """Refuse a `value` that is not a `kind`."""
    if not isinstance(value, kind):
        raise TeacherCacheError(f"{name} takes a {kind.__name__}, got {value!r:.80}")


def check_text(value: object, name: str, *, empty: bool = False) -> str:
    """Return `value` if it is a text; an empty one only where `empty` allows it."""
    if not isinstance(value, str) or not (value or empty) or len(value) > MAX_TEXT:
        raise TeacherCacheError(f"{name} takes a text, got {value!r:.80}")
    return value


def check_relative(value: object) -> str:
    """Return `value` if it is a path below the image folder, as a manifest may name it.

    Raises:
        TeacherCacheError: empty, absolute, or with a `..` in it.
    """
    path = check_text(value, "path of an image")
    if path.startswith("/") or "\0" in path or ".." in path.replace("\\", "/").split("/"):
        raise TeacherCacheError(f"path of an image must stay below the image folder, got {path!r}")
    return path


def check_choice(value: object, name: str, choices: Collection[str]) -> None:
    """Refuse a `value` that is not among `choices`."""
    if value not in choices:
        raise TeacherCacheError(f"{name} takes one of {', '.join(choices)}, got {value!r:.80}")


def check_int(value: object, name: str, low: int, high: int) -> None:
    """Refuse a `value` that is not a whole number in `low`..`high`."""
    # bool is an int to Python but not to JSON
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise TeacherCacheError(f"{name} takes {low} to {high}, got {value!r:.80}")


def with_digest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` with a SHA-256 over themselves under the key `digest`."""
    return {**fields, "digest": hashlib.sha256(canonical_json(fields)).hexdigest()}


def json_with_digest(fields: Mapping[str, Any]) -> bytes:
    """Write `with_digest(fields)` as canonical JSON, every value once."""
    parts = {key: canonical_json(key) + b":" + canonical_json(fields[key]) for key in fields}
    sha = hashlib.sha256(b"{" + b",".join(parts[key] for key in sorted(parts)) + b"}")
    parts["digest"] = f'"digest":"{sha.hexdigest()}"'.encode("ascii")
    return b"{" + b",".join(parts[key] for key in sorted(parts)) + b"}"


def without_digest(value: object, where: str) -> dict[str, Any]:
    """Return the fields that `with_digest` was given.

    Raises:
        DamagedError: not a JSON object, or the digest does not fit: some byte changed.
    """
    if not isinstance(value, Mapping):
        raise DamagedError(f"{where} is damaged: not a JSON object")
    fields = dict(value)
    digest = fields.pop("digest", None)
    if with_digest(fields)["digest"] != digest:
        raise DamagedError(f"{where} does not match its digest: it is damaged or was edited")
    return fields


def json_without_digest(
    data: bytes, where: str, check_format: Callable[[Mapping[str, Any], str], None]
) -> dict[str, Any]:
    """Return the fields that `with_digest` was given, from a file in canonical JSON.

    For files of hundreds of megabytes: nothing is written out again to be hashed. Any other
    spelling of the same fields is refused.

    Raises:
        DamagedError: not JSON, or the digest does not fit.
        TeacherCacheError: what `check_format` finds.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is damaged: {error}") from error
    if not isinstance(fields, dict):
        raise DamagedError(f"{where} is damaged: not a JSON object")
    check_format(fields, where)
    digest = fields.pop("digest", None)
    # quotes inside of strings are escaped, so this can only be the key
    key = f'"digest":"{digest}",'.encode()
    place = data.find(key)
    sha = hashlib.sha256(memoryview(data)[: max(place, 0)])
    sha.update(memoryview(data)[place + len(key) :])
    if place < 0 or sha.hexdigest() != digest:
        raise DamagedError(f"{where} does not match its digest: it is damaged or was edited")
    return fields
