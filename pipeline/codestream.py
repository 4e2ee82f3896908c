"""The size that a coded frame inside DICOM claims for itself, before a decoder believes it."""

import struct

from pydicom import Dataset
from pydicom.uid import JPEG2000TransferSyntaxes

from .depth import UnfitPixelsError

_NO_FRAME = (0xFFC4, 0xFFC8, 0xFFCC)  # Huffman tables, reserved, arithmetic conditioning


def check_frame_size(frame: bytes, dataset: Dataset) -> None:
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
