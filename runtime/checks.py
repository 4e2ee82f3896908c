"""Values that came from a file are checked before anybody believes them."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MAX_TEXT: Final = 2**20
"""Characters of the longest text that is believed."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class UntrustedError(ValueError):
    """A value of a file is not what the file must hold."""


def is_sha256(text: str) -> bool:
    """Return whether `text` is a SHA-256 digest of 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Checks:
    """Checks of values; each names the value, what it takes and what it got.

    Attributes:
        error: what every check raises.
    """

    error: type[ValueError] = UntrustedError

    def read_object(self, path: Path) -> dict[str, Any]:
        """Read a file that must hold a JSON object.

        Raises:
            OSError: it cannot be read.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise self.error(f"{path} is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise self.error(f"{path} is no JSON object")
        return value

    def mapping(self, value: object, where: str) -> Mapping[str, Any]:
        """Return `value` if it is a mapping, which is what a JSON object becomes."""
        if not isinstance(value, Mapping):
            raise self.error(f"{where} takes a JSON object, got {value!r:.80}")
        return value

    def fields(
        self, value: object, names: Collection[str], where: str, optional: Collection[str] = ()
    ) -> dict[str, Any]:
        """Return `value` as a dict with the keys `names`, and perhaps those of `optional`."""
        fields = self.mapping(value, where)
        missing = sorted(set(names) - set(fields))
        unknown = sorted(set(fields) - set(names) - set(optional))
        if missing or unknown:
            raise self.error(f"{where}: missing keys {missing}, unknown keys {unknown}")
        return dict(fields)

    def kind(self, value: object, name: str, kind: type) -> None:
        """Refuse a `value` that is not a `kind`."""
        if not isinstance(value, kind):
            raise self.error(f"{name} takes a {kind.__name__}, got {value!r:.80}")

    def text(self, value: object, name: str, *, empty: bool = False) -> str:
        """Return `value` if it is a text; an empty one only where `empty` allows it."""
        if not isinstance(value, str) or not (value or empty) or len(value) > MAX_TEXT:
            raise self.error(f"{name} takes a text, got {value!r:.80}")
        return value

    def sha256(self, value: object, name: str) -> str:
        """Return `value` if it is a SHA-256 digest of 64 lower-case hex digits."""
        if not isinstance(value, str) or not is_sha256(value):
            raise self.error(f"{name} takes 64 lower-case hex digits, got {value!r:.80}")
        return value

    def choice(self, value: object, name: str, choices: Collection[str]) -> None:
        """Refuse a `value` that is not among `choices`."""
        if value not in choices:
            raise self.error(f"{name} takes one of {', '.join(choices)}, got {value!r:.80}")

    def integer(self, value: object, name: str, low: int, high: int) -> None:
        """Refuse a `value` that is not a whole number in `low`..`high`."""
        # bool is an int to Python but not to JSON
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(f"{name} takes {low} to {high}, got {value!r:.80}")
