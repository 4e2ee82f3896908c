"""One DICOM file to 8-bit RGB, through pydicom, in the order of the standard (PS3.4 N.2).

Grey: stored values, modality LUT or rescale, VOI LUT or the first window, MONOCHROME1 inverted.
Without a VOI LUT or window, unsigned values of up to 8 bits that are not rescaled keep their full
range, and all others are stretched from the image's own minimum to its maximum, pixels of
PixelPaddingValue not counted. Colour keeps its 8 high bits. Overlays, presentation states and
colour profiles are not applied.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
)

from .bit_depth import UnfitPixelsError, Values, by_level, quantise, stretch

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_EXTRA = "pip install 'medalign[dicom]'"
_NO_FRAME = (0xFFC4, 0xFFC8, 0xFFCC)  # Huffman tables, reserved, arithmetic conditioning


def is_dicom(data: bytes, name: str) -> bool:
    """Return whether a file is to be read as DICOM: by its magic, else by its name."""
    return data[128:132] == b"DICM" or PurePath(name).suffix.lower() in (".dcm", ".dicom")


def decode_dicom(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Return the one frame of a DICOM file as uint8 [H, W, 3].

    Raises:
        UnfitPixelsError: if there are no pixels, several frames, more than `max_pixels` pixels or
            a coding that no installed decoder reads.
        Exception: whatever pydicom raises on damaged files; `pixels.decode` gives it a name.
    """
    dataset = _parse(data)
    _check(dataset, max_pixels)
    stored, photometric = _stored(dataset)
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        grey = _grey(dataset, stored)
        if photometric == "MONOCHROME1":
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, axis=2)
    return _colour(dataset, stored, photometric)


def _parse(data: bytes) -> Dataset:
    # A deflated file inflates as a whole, unbounded, before its size can be checked.
    if DeflatedExplicitVRLittleEndian.encode() in data[:65_536]:
        raise UnfitPixelsError("is deflated DICOM, which is not read; convert it to explicit VR")
    try:
        # Without the magic we are here because of the name: old files have no preamble.
        dataset = dcmread(io.BytesIO(data), force=data[128:132] != b"DICM")
    except InvalidDicomError:
        raise UnfitPixelsError("is not a DICOM file") from None
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _check(dataset: Dataset, max_pixels: int) -> None:
    """Refuse, from the header alone, what is not one image of a bearable size."""
    if not any(keyword in dataset for keyword in _PIXELS):
        raise UnfitPixelsError("is DICOM without pixel data")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        raise UnfitPixelsError(
            f"holds {frames} frames, one is wanted; write the frame you need to a file of its own"
        )
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if rows * columns > max_pixels:
        raise UnfitPixelsError(
            f"has {rows} x {columns} pixels, at most {max_pixels} are read (max_pixels)"
        )


def _stored(dataset: Dataset) -> tuple[Values, str]:
    """Return the stored values, [H, W] or [H, W, 3], and how they are to be seen."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnfitPixelsError(f"holds {syntax.name} pixels, which pydicom does not read") from None
    if not decoder.is_available:
        raise UnfitPixelsError(f"holds {syntax.name} pixels, which need a decoder: {_EXTRA}")
    if syntax.is_encapsulated:
        _check_frame_size(get_frame(dataset.PixelData, 0, number_of_frames=1), dataset)
    try:
        array, properties = decoder.as_array(dataset, index=0, **as_pixel_options(dataset))
    except RuntimeError as error:
        # One plugin tried and failed; another one, not installed, may read it.
        lacking = any("pylibjpeg" in name for name in decoder.missing_dependencies)
        hint = f"; another decoder may read it: {_EXTRA}" if lacking else ""
        reason = " ".join(str(error).split())
        raise UnfitPixelsError(f"holds {syntax.name} pixels: {reason}{hint}") from error
    return array, str(properties["photometric_interpretation"])


def _check_frame_size(frame: bytes, dataset: Dataset) -> None:
    """Refuse a coded frame of another size than the data set announces.

    The decoders believe the frame, and would make room for 65535 x 65535 pixels and more.

    Args:
        frame: the coded bytes of one frame.
        dataset: with Rows, Columns and a transfer syntax.

    Raises:
        UnfitPixelsError: if the sizes differ or a JPEG 2000 frame is damaged.
        struct.error: if the frame ends before it says its size.
    """
    if frame[:2] == b"\xff\xd8":
        size = _jpeg_size(frame)
    elif dataset.file_meta.TransferSyntaxUID in JPEG2000TransferSyntaxes:
        size = _jpeg2000_size(frame)
    else:
        return  # run lengths, which pydicom decodes to the header's size
    if size != (dataset.Rows, dataset.Columns):
        raise UnfitPixelsError(
            f"announces {dataset.Rows} x {dataset.Columns} pixels but its coded frame has "
            f"{size[0]} x {size[1]}"
        )


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    """Return height and width from the frame header of a JPEG, lossless JPEG or JPEG-LS."""
    offset = 2
    while True:
        marker, length = struct.unpack_from(">HH", frame, offset)
        if marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker not in _NO_FRAME):
            height, width = struct.unpack_from(">HH", frame, offset + 5)
            return height, width
        offset += length + 2


def _jpeg2000_size(frame: bytes) -> tuple[int, int]:
    """Return height and width from a JPEG 2000 codestream, bare or in boxes."""
    start = 0
    if frame.startswith(b"\0\0\0\x0cjP  "):
        start = 12
        while frame[start + 4 : start + 8] != b"jp2c":
            (length,) = struct.unpack_from(">I", frame, start)
            if length < 8:  # pydicom would walk on the spot for ever
                raise UnfitPixelsError("holds a damaged JPEG 2000 frame")
            start += length
        start += 8
    if frame[start : start + 4] != b"\xff\x4f\xff\x51":
        raise UnfitPixelsError("holds a damaged JPEG 2000 frame")
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    return bottom - top, right - left


def _grey(dataset: Dataset, stored: Values) -> NDArray[np.uint8]:
    padding = dataset.get("PixelPaddingValue")
    return by_level(stored, lambda levels: _shown(dataset, levels, padding))


def _shown(dataset: Dataset, stored: Values, padding: int | None) -> NDArray[np.uint8]:
    """Return the grey of stored values as the standard's pipeline shows them."""
    values = _modality(dataset, stored)
    source = _macro(dataset, "FrameVOILUTSequence")
    if source.get("VOILUTSequence"):
        table, bits = _lookup(dataset, source.VOILUTSequence[0], values)
        return quantise(table, 0, 2**bits - 1)
    center, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    if center is not None and width is not None:
        function = str(source.get("VOILUTFunction") or "LINEAR").upper()
        return quantise(_window(values, center, width, function), 0, 1)
    bits = int(dataset.get("BitsStored") or 64)
    if values is stored and bits <= 8 and stored.dtype.kind == "u":
        return quantise(stored, 0, 2**bits - 1)
    counted = values[stored != padding] if padding is not None else values
    if counted.size in (0, values.size):
        return stretch(values)
    return quantise(values, float(counted.min()), float(counted.max()))


def _modality(dataset: Dataset, stored: Values) -> Values:
    """Return values in the modality's unit (Hounsfield, say); `stored` itself if it has none."""
    source = _macro(dataset, "PixelValueTransformationSequence")
    if source.get("ModalityLUTSequence"):
        return _lookup(dataset, source.ModalityLUTSequence[0], stored)[0]
    slope, intercept = _first(source.get("RescaleSlope")), _first(source.get("RescaleIntercept"))
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if (slope, intercept) == (1.0, 0.0):
        return stored
    return stored.astype(np.float64) * slope + intercept


def _window(values: Values, center: float, width: float, function: str) -> NDArray[np.float64]:
    """Return values under a window, 0..1 inside it (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    least = 1.0 if function == "LINEAR" else np.nextafter(0, 1)
    if not width >= least:
        raise UnfitPixelsError(f"has a window of width {width:g}, which {function} does not allow")
    x = values.astype(np.float64)
    if function == "LINEAR":
        if width == 1:
            return np.where(x <= center - 0.5, 0.0, 1.0)
        return (x - (center - 0.5)) / (width - 1) + 0.5
    if function == "LINEAR_EXACT":
        return (x - center) / width + 0.5
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (x - center) / width))
    raise UnfitPixelsError(f"has the VOI LUT function {function}, which is not known")


def _lookup(dataset: Dataset, item: Dataset, values: Values) -> tuple[Values, int]:
    """Return values looked up in a LUT item, and the bits of its entries.

    pydicom's own lookup indexes with the type of the entries, which fails on the common table of
    4096 entries of 8 bits.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 1 << 16
    raw = item.LUTData
    if isinstance(raw, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        raw = np.frombuffer(raw, "u1" if len(raw) < 2 * entries else f"{order}u2")
    table: Values = np.atleast_1d(np.asarray(raw))[:entries]
    if len(table) < entries or not 8 <= bits <= 16:
        raise UnfitPixelsError(
            f"has a lookup table of {len(table)} entries of {bits} bits, announced as {entries}"
        )
    # In float64: unsigned values below `first` must not wrap round.
    index = np.clip(np.floor(values.astype(np.float64)) - first, 0, entries - 1)
    return table[index.astype(np.intp)], bits


def _colour(dataset: Dataset, stored: Values, photometric: str) -> NDArray[np.uint8]:
    if photometric == "PALETTE COLOR":
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        stored = apply_color_lut(stored, dataset)
    elif photometric == "RGB":
        bits = int(dataset.BitsStored)
    else:
        raise UnfitPixelsError(f"is {photometric}, which is not read; convert it to RGB")
    if stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype.kind != "u":
        raise UnfitPixelsError(
            f"holds colour as {stored.dtype} {list(stored.shape)}, must be unsigned [H, W, 3]"
        )
    result: NDArray[np.uint8] = (stored >> max(bits - 8, 0)).astype(np.uint8)
    return result


def _macro(dataset: Dataset, sequence: str) -> Dataset:
    """Return where enhanced objects keep these attributes, else the data set itself."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        if dataset.get(groups) and (items := dataset[groups].value[0].get(sequence)):
            first: Dataset = items[0]
            return first
    return dataset


def _first(value: Any) -> float | None:
    """Return the first of one or several numbers, None if there is none."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return None if value is None else float(value)
