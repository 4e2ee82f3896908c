"""One image file to 8-bit RGB, honestly: what cannot be shown faithfully is refused by name.

The rules, the same wherever medalign reads an image:

- 8-bit PNG, JPEG, TIFF, GIF, BMP, WebP, PPM and JPEG 2000 in grey, palette, RGB, YCbCr or CMYK
  (inverted by Adobe or not) give what Pillow's `convert("RGB")` gives. Colour profiles are ignored.
- Grey of more than 8 bits, integer or floating, is stretched linearly from the image's own
  minimum to its maximum (0 to 255, halves rounded up); one value throughout becomes 0; NaN and
  infinity are refused. Colour, and grey with alpha, of 16 bits keeps its high byte, as in Pillow.
- Transparency is composited on black, or on white with `alpha="white"`.
- The EXIF orientation is applied. Of an MPO (a camera's JPEG with extra pictures) the main
  picture is read; any other file of several frames or pages is refused.
- DICOM is known by its magic or its name; `dicom.py` has its rules.

A PNG's checksums are verified. JPEG has none: one that was damaged, not cut short, is decoded to
whatever libjpeg makes of it.
"""

import hashlib
import io
import stat
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from .bit_depth import UnfitPixelsError, stretch
from .dicom import decode_dicom, is_dicom

Alpha = Literal["black", "white"]
MAX_PIXELS = 178_956_970
"""Largest image read by default, in pixels: where Pillow sees a decompression bomb."""
MAX_SIDE = 65_535
"""Longest side read, in pixels: that of JPEG and DICOM. Padding makes a square of it."""

_FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "JPEG2000")
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339  # TIFF tags


class PixelsError(ValueError):
    """Say that one file cannot be read as an image.

    Attributes:
        path: the file, as it was named to the reader.
        reason: what is wrong with it.
    """

    exit_code = 1  # a file that cannot be read is no wrong command

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["PixelsError"], tuple[str, str]]:
        return PixelsError, (self.path, self.reason)  # so that it crosses processes


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Hold the pixels of a file and its identity.

    Attributes:
        rgb: uint8 [H, W, 3], not writable.
        sha256: hex digest of the file's bytes.
    """

    rgb: NDArray[np.uint8]
    sha256: str


class _Strict:
    """Silence the decoders and make Pillow strict while at least one thread decodes.

    What is wrong with a file is an error or does not matter; a warning that reaches the user, or
    becomes an exception, would depend on their filters. `catch_warnings` alone would restore the
    filters of another thread, hence the count: the first one in changes, the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._warnings = warnings.catch_warnings()
        self._truncated = False

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom|pylibjpeg|\w+jpeg)(\.|$)")
                self._truncated = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False  # else a cut file is filled with grey

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._warnings.__exit__(kind, error, trace)
                ImageFile.LOAD_TRUNCATED_IMAGES = self._truncated


strict_decoding = _Strict()
"""The one context under which this process decodes."""


def read_image(path: Path, *, alpha: Alpha = "black", max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Read a file once; return its pixels and the digest of its bytes.

    Args:
        path: the image file.
        alpha: background that transparency is composited on.
        max_pixels: refuse larger images before decoding them. Twice Pillow's
            `Image.MAX_IMAGE_PIXELS` is a limit of its own.

    Raises:
        PixelsError: whatever is wrong; nothing else for any content of the file.
    """
    data = _read_bytes(path, max_pixels)
    rgb = decode(data, str(path), alpha=alpha, max_pixels=max_pixels)
    return DecodedImage(rgb, hashlib.sha256(data).hexdigest())


def sha256_file(path: Path) -> str:
    """Return the hex digest of a file's bytes without holding them in memory.

    Raises:
        PixelsError: if the file is missing, no regular file or unreadable.
    """
    try:
        _file_size(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise PixelsError(str(path), _reason(error)) from error


def decode(
    data: bytes, name: str, *, alpha: Alpha = "black", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Return the pixels of a file's bytes as uint8 [H, W, 3], not writable.

    Args:
        data: the whole file.
        name: what errors call it; the suffixes .dcm and .dicom mean DICOM.
        alpha: background that transparency is composited on.
        max_pixels: refuse larger images before decoding them.

    Raises:
        PixelsError: whatever is wrong; nothing else for any bytes.
    """
    if not data:
        raise PixelsError(name, "is empty (0 bytes)")
    try:
        with strict_decoding, np.errstate(all="ignore"):
            if is_dicom(data, name):
                rgb = decode_dicom(data, max_pixels)
            else:
                rgb = _decode_pillow(data, alpha, max_pixels)
    except Exception as error:  # decoders raise anything on hostile bytes
        raise PixelsError(name, _reason(error)) from error
    rgb = np.ascontiguousarray(rgb)
    rgb.flags.writeable = False
    return rgb


def _read_bytes(path: Path, max_pixels: int) -> bytes:
    try:
        size, most = _file_size(path), 16 * max_pixels + (64 << 20)
        if size > most:
            raise UnfitPixelsError(f"is {size} bytes, files of up to {most} are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise PixelsError(str(path), _reason(error)) from error


def _file_size(path: Path) -> int:
    """Return the size of a regular file; a pipe or a device could be read for ever."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise UnfitPixelsError("is a directory, not an image file")
    if not stat.S_ISREG(status.st_mode):
        raise UnfitPixelsError("is not a regular file")
    return status.st_size


def _reason(error: Exception) -> str:
    if isinstance(error, UnfitPixelsError):
        text = str(error)
    elif isinstance(error, UnidentifiedImageError):
        text = f"is not an image of a known kind ({', '.join(_FORMATS)}, DICOM)"
    elif isinstance(error, Image.DecompressionBombError):
        text = f"has too many pixels: {error}"
    elif isinstance(error, OSError) and error.strerror:
        text = f"cannot be read: {error.strerror.lower()}"
    else:
        text = f"cannot be decoded: {str(error) or 'no reason given'} ({type(error).__name__})"
    plain = " ".join(text.split())
    return plain if len(plain) <= 400 else f"{plain[:400]}..."


def _decode_pillow(data: bytes, alpha: Alpha, max_pixels: int) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    _check_size(image, max_pixels)
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise UnfitPixelsError(
            f"holds {frames} frames, one is wanted; write the frame you need to a file of its own"
        )
    if image.format == "PNG":
        _check_png(data)
    if image.format == "JPEG2000" and b"\xff\xd9" not in data:  # a header alone decodes to black
        raise UnfitPixelsError("is cut short")
    image.load()
    if image.mode in _DEEP:
        rgb = _deep_grey(image, alpha)
    elif image.has_transparency_data:
        rgb = _composite(image, alpha)
    else:
        rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return _upright(rgb, image.getexif().get(ExifTags.Base.Orientation))


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise UnfitPixelsError(
            f"has {height} x {width} pixels, at most {max_pixels} are read (max_pixels), "
            f"and {MAX_SIDE} a side"
        )


def _check_png(data: bytes) -> None:
    """Refuse what Pillow lets pass: wrong checksums of pixels, and an end that is missing."""
    view, position, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise UnfitPixelsError("is cut short")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise UnfitPixelsError("is cut short")
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(view[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise UnfitPixelsError("is damaged: a checksum does not fit")
        position = end + 4


def _deep_grey(image: Image.Image, alpha: Alpha) -> NDArray[np.uint8]:
    """Return grey of more than 8 bits, stretched, as RGB [H, W, 3]."""
    values: NDArray[Any] = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if values.dtype == np.int32 and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT) != (2,):
        values = values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
    key = image.info.get("transparency")
    opaque = ... if key is None else values != key
    grey = np.full(values.shape, 255 if alpha == "white" else 0, np.uint8)
    if values[opaque].size:
        levels = stretch(values[opaque])
        # Pillow inverts white-is-zero of 8 bits only.
        grey[opaque] = 255 - levels if tags.get(_PHOTOMETRIC) == 0 else levels
    return np.repeat(grey[..., None], 3, axis=2)


def _composite(image: Image.Image, alpha: Alpha) -> NDArray[np.uint8]:
    """Return the image over a background: (a * c + (255 - a) * background) / 255, rounded."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        raise UnfitPixelsError("has 16-bit colour with a transparent colour, which is not read")
    rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
    weight = rgba[..., 3:]
    background = (255 - weight) * np.uint16(255 if alpha == "white" else 0)
    # At most 255 * 255 + 127, which 16 bits hold.
    return ((rgba[..., :3] * weight + background + 127) // 255).astype(np.uint8)


def _upright(rgb: NDArray[np.uint8], orientation: object) -> NDArray[np.uint8]:
    """Return the image turned as EXIF says; a view where possible."""
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return rgb
