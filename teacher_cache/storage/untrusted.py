"""The store's errors, and how its values are written, hashed and checked."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from ...runtime.checks import Checks

MAX_ROWS: Final = 2**31 - 1


class TeacherCacheError(ValueError):
    """A teacher cache is missing, unfinished, damaged, or not the one that was asked for."""


class DamagedError(TeacherCacheError):
    """A file of a cache does not hold the bytes that were written."""

    exit_code = 1


_CHECKS: Final = Checks(TeacherCacheError)
strict_fields, check_mapping = _CHECKS.fields, _CHECKS.mapping
check_type, check_text, check_choice = _CHECKS.kind, _CHECKS.text, _CHECKS.choice
check_sha256, check_int = _CHECKS.sha256, _CHECKS.integer


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


def check_relative(value: object) -> str:
    """Return `value` if it is a path below the image folder, as a manifest may name it.

    Raises:
        TeacherCacheError: empty, absolute, or with a `..` in it.
    """
    path = check_text(value, "path of an image")
    if path.startswith("/") or "\0" in path or ".." in path.replace("\\", "/").split("/"):
        raise TeacherCacheError(f"path of an image must stay below the image folder, got {path!r}")
    return path


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
    start = data.find(key)
    sha = hashlib.sha256(memoryview(data)[: max(start, 0)])
    sha.update(memoryview(data)[start + len(key) :])
    if start < 0 or sha.hexdigest() != digest:
        raise DamagedError(f"{where} does not match its digest: it is damaged or was edited")
    return fields
