"""Fingerprints of images on disk, so that an interrupted comparison goes on where it was.

JSON Lines: a first line that says how they were made, then one line an image. A last line that was
cut short is dropped.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import PIL

from .fingerprint import BITS, DEAD_ZONE, Fingerprint

_HEAD: Final = {
    "medalign": "fingerprints",
    "version": 1,
    "bits": BITS,
    "dead_zone": DEAD_ZONE,
    "pillow": PIL.__version__,  # another one may decode a JPEG to other pixels
}


class FingerprintFileError(ValueError):
    """A file of fingerprints that is none, or was made in another way."""


class FingerprintFile:
    """Fingerprints by content; with a file, each is there as soon as it is known.

    Attributes:
        known: SHA-256 (hex) of an image file -> its fingerprint.
    """

    def __init__(self, file: BinaryIO | None = None) -> None:
        self.known: dict[str, Fingerprint] = {}
        self._file = file

    def add(self, content: str, found: Fingerprint) -> None:
        """Keep one more."""
        self.known[content] = found
        if self._file is not None:
            coded = [base64.b64encode(part).decode() for part in (found.signs, found.definite)]
            self._write([content, found.pixels, *coded])

    def _write(self, value: object) -> None:
        if self._file is not None:
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()


@contextmanager
def fingerprint_file(path: Path | None) -> Iterator[FingerprintFile]:
    """Open a file of fingerprints, or make it; None keeps them in memory alone.

    Raises:
        FingerprintFileError: the file is another one, or of another version.
    """
    if path is None:
        yield FingerprintFile()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        kept = FingerprintFile(file)
        end = _read(path, file, kept)
        file.truncate(end)
        file.seek(end)
        if not end:
            kept._write(_HEAD)
        yield kept


def _read(path: Path, file: BinaryIO, kept: FingerprintFile) -> int:
    """Read what is there; return where the last whole line ends."""
    end = 0
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            value = json.loads(line)
            if number == 1 and value != _HEAD:
                raise ValueError("another head")
            if number > 1:
                content, found = _parse(value)
                kept.known[content] = found
        except (ValueError, TypeError) as error:
            raise FingerprintFileError(
                f"{path}: line {number} is none of a file of fingerprints of this version; "
                "name a new file"
            ) from error
        end += len(line)
    if not end and path.stat().st_size:
        raise FingerprintFileError(f"{path}: is no file of fingerprints; name a new file")
    return end


def _parse(value: Any) -> tuple[str, Fingerprint]:
    content, pixels, *coded = value
    signs, definite = (base64.b64decode(part, validate=True) for part in coded)
    if not len(signs) == len(definite) == BITS // 8:
        raise binascii.Error("another length")
    return str(content), Fingerprint(str(pixels), signs, definite)
