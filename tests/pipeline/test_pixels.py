import contextlib
import copy
import hashlib
import io
import multiprocessing
import os
import struct
import warnings
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from medalign.pipeline.pixels import PixelsError, decode, read_image, sha256_file

NOISE = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
COLOUR = Image.fromarray(NOISE)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(rgb: NDArray[np.uint8]) -> list[list[int]]:
    assert (rgb == rgb[..., :1]).all()
    assert rgb.dtype == np.uint8
    levels: list[list[int]] = rgb[..., 0].tolist()
    return levels


def reason(data: bytes, name: str = "scan.png", **options: Any) -> str:
    with pytest.raises(PixelsError) as caught:
        decode(data, name, **options)
    assert str(caught.value) == f"{name}: {caught.value.reason}"
    assert "\n" not in caught.value.reason
    return str(caught.value.reason)


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG written by hand, for what Pillow does not write; `rows` with a filter byte each."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_images_are_what_pillow_shows(kind: str, mode: str) -> None:
    data = encoded(COLOUR.convert(mode), kind)
    rgb = decode(data, "x")
    np.testing.assert_array_equal(rgb, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert rgb.shape == (24, 31, 3)
    assert rgb.flags.c_contiguous
    assert not rgb.flags.writeable


def test_lossless_formats_give_back_the_pixels() -> None:
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        np.testing.assert_array_equal(decode(encoded(COLOUR, kind), "x"), NOISE)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        data = encoded(COLOUR, "TIFF", compression=compression)
        np.testing.assert_array_equal(decode(data, "x"), NOISE)


def test_bilevel_palette_and_colour_models_become_rgb() -> None:
    bilevel = Image.fromarray(np.array([[True, False]]))
    assert grey(decode(encoded(bilevel, "PNG"), "x")) == [[255, 0]]
    palette = COLOUR.quantize(16)
    for kind in ("PNG", "GIF", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(palette, kind), "x"), palette.convert("RGB"))
    ycc = COLOUR.convert("YCbCr")
    np.testing.assert_array_equal(decode(encoded(ycc, "TIFF"), "x"), np.asarray(ycc.convert("RGB")))


def test_cmyk_means_ink_inverted_by_adobe_or_not() -> None:
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow: red
    assert decode(encoded(ink, "TIFF"), "x")[0, 0].tolist() == [255, 0, 0]
    red, green, blue = decode(encoded(ink, "JPEG", quality=100), "x")[4, 4].tolist()
    assert red > 250
    assert max(green, blue) < 5


def test_alpha_is_composited_on_the_stated_background() -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    data = encoded(Image.fromarray(rgba), "PNG")
    # 51 / 255 = 0.2: 0.2 * (200, 100, 0) = (40, 20, 0), on white + 0.8 * 255 = 204
    assert decode(data, "x").tolist() == [[[200, 100, 0], [0, 0, 0], [40, 20, 0]]]
    on_white = [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]
    assert decode(data, "x", alpha="white").tolist() == on_white
    grey_alpha = Image.fromarray(np.array([[[200, 51]]], np.uint8))
    assert grey(decode(encoded(grey_alpha, "PNG"), "x")) == [[40]]
    assert grey(decode(encoded(grey_alpha, "PNG"), "x", alpha="white")) == [[244]]


@given(st.integers(0, 255), st.integers(0, 255), st.sampled_from(["black", "white"]))
@settings(deadline=None)
def test_compositing_rounds_to_the_nearest(level: int, weight: int, alpha: Any) -> None:
    data = encoded(Image.fromarray(np.array([[[level, weight]]], np.uint8)), "PNG")
    exact = (level * weight + (255 - weight) * (255 if alpha == "white" else 0)) / 255
    assert abs(grey(decode(data, "x", alpha=alpha))[0][0] - exact) <= 0.5


def test_transparent_colours_of_palette_grey_and_rgb_are_background() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    data = encoded(palette, "PNG", transparency=1)
    assert decode(data, "x").tolist() == [[[10, 20, 30], [0, 0, 0]]]
    assert decode(data, "x", alpha="white").tolist() == [[[10, 20, 30], [255, 255, 255]]]
    levels = Image.fromarray(np.array([[7, 9]], np.uint8))
    data = encoded(levels, "PNG", transparency=9)
    assert grey(decode(data, "x", alpha="white")) == [[7, 255]]
    colours = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    data = encoded(colours, "PNG", transparency=(4, 5, 6))
    assert decode(data, "x", alpha="white").tolist() == [[[1, 2, 3], [255, 255, 255]]]
    keyed = png(2, 1, 16, 0, b"\0\x10\0\x20\0", chunk(b"tRNS", b"\x20\0"))
    assert grey(decode(keyed, "x", alpha="white")) == [[0, 255]]
    keyed = png(2, 1, 16, 0, b"\0\x20\0\x20\0", chunk(b"tRNS", b"\x20\0"))
    assert grey(decode(keyed, "x")) == [[0, 0]]
    keyed = png(1, 1, 16, 2, b"\0" + b"\x10\0" * 3, chunk(b"tRNS", b"\x10\0" * 3))
    assert "16-bit colour with a transparent colour" in reason(keyed)


def test_sixteen_bit_grey_is_stretched_from_its_own_minimum_to_its_maximum() -> None:
    # (v - 1000) / 3000 * 255: 1500 -> 42.5 rounds up, 2000 -> 85, 3999 -> 254.915
    values = np.array([[1000, 1500, 2000], [3999, 4000, 1001]], np.uint16)
    expected = [[0, 43, 85], [255, 255, 0]]
    image = Image.fromarray(values)
    for kind in ("PNG", "TIFF"):
        assert grey(decode(encoded(image, kind), "x")) == expected
    assert grey(decode(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"), "x")) == expected
    negative = Image.fromarray(values.astype(np.float32) - 2500)
    assert grey(decode(encoded(negative, "TIFF"), "x")) == expected
    pgm = b"P5 3 2 65535\n" + values.astype(">u2").tobytes()
    assert grey(decode(pgm, "x")) == expected


def test_constant_deep_images_become_zero() -> None:
    for dtype in (np.uint16, np.int32, np.float32):
        image = Image.fromarray(np.full((2, 2), 700, dtype))
        assert grey(decode(encoded(image, "TIFF"), "x")) == [[0, 0], [0, 0]]


def test_the_whole_range_of_each_depth_is_honoured() -> None:
    wide = Image.fromarray(np.array([[-(2**31), 0, 2**31 - 1]], np.int32))
    assert grey(decode(encoded(wide, "TIFF"), "x")) == [[0, 128, 255]]  # 127.50000003
    big = Image.fromarray(np.array([[-3e38, 0, 3e38]], np.float32))
    assert grey(decode(encoded(big, "TIFF"), "x")) == [[0, 128, 255]]
    unsigned = tiff([[0, 2**31, 2**32 - 1]], "<u4", sample_format=1)
    assert grey(decode(unsigned, "x")) == [[0, 128, 255]]  # Pillow's own view is negative


def tiff(values: Any, dtype: str, *, sample_format: int, photometric: int = 1) -> bytes:
    """A TIFF written by hand, for what Pillow does not write."""
    array = np.array(values, dtype)
    height, width = array.shape
    tags = {256: width, 257: height, 258: array.itemsize * 8, 259: 1, 262: photometric}
    tags |= {273: 8 + 2 + 10 * 12 + 4, 277: 1, 278: height, 279: array.nbytes, 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return start + entries + struct.pack("<I", 0) + array.tobytes()


def test_white_is_zero_is_inverted_at_every_depth() -> None:
    for dtype, sample_format in (("<u1", 1), ("<u2", 1), ("<f4", 3)):
        data = tiff([[0, 255]], dtype, sample_format=sample_format, photometric=0)
        assert grey(decode(data, "x")) == [[255, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_without_a_value_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0, 1, value]], np.float32))
    assert reason(encoded(image, "TIFF")) == "holds NaN or infinite values"


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    rows = b"\0" + struct.pack(">3H", 0x1234, 0xABFF, 0xFF00)
    assert decode(png(1, 1, 16, 2, rows), "x").tolist() == [[[0x12, 0xAB, 0xFF]]]
    opaque = b"\0" + struct.pack(">4H", 0x1234, 0xABFF, 0xFF00, 0xFFFF)
    assert decode(png(1, 1, 16, 6, opaque), "x").tolist() == [[[0x12, 0xAB, 0xFF]]]
    half = b"\0" + struct.pack(">2H", 0xC8FF, 0x3300)  # 200 at 51 / 255
    assert grey(decode(png(1, 1, 16, 4, half), "x")) == [[40]]
    assert grey(decode(png(1, 1, 16, 4, half), "x", alpha="white")) == [[244]]


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(COLOUR, kind, exif=exif)
    opened = Image.open(io.BytesIO(data))
    rgb = decode(data, "x")
    np.testing.assert_array_equal(rgb, np.asarray(ImageOps.exif_transpose(opened).convert("RGB")))
    assert rgb.shape[:2] == ((31, 24) if orientation in (5, 6, 7, 8) else (24, 31))
    assert rgb.flags.c_contiguous


def test_orientation_six_turns_clockwise() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.array([[1, 2], [3, 4], [5, 6]], np.uint8))
    assert grey(decode(encoded(image, "PNG", exif=exif), "x")) == [[5, 3, 1], [6, 4, 2]]


def test_several_frames_are_refused_by_name() -> None:
    frames = [COLOUR.rotate(angle).quantize(8) for angle in (0, 30, 60)]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        data = encoded(frames[0].convert("RGB"), kind, save_all=True, append_images=frames[1:])
        assert reason(data).startswith("holds 3 frames, one is wanted; write the frame")
        decode(encoded(frames[0], kind), "x")


def test_of_a_camera_file_the_main_picture_is_read() -> None:
    data = encoded(COLOUR, "MPO", save_all=True, append_images=[COLOUR.rotate(90)], quality=95)
    np.testing.assert_array_equal(decode(data, "x"), np.asarray(Image.open(io.BytesIO(data))))


def test_bombs_are_refused_from_their_header() -> None:
    claims = png(20_000, 20_000, 8, 2, b"")
    assert "pixels" in reason(claims)
    assert "20000 x 20000" not in reason(claims[:33])  # Pillow's own limit comes first
    assert "has 9000 x 9000 pixels, at most 1000 are read" in reason(
        png(9000, 9000, 8, 0, b""), max_pixels=1000
    )
    assert "65535 a side" in reason(png(70_000, 1, 8, 0, b""))
    exact = encoded(COLOUR, "PNG")
    assert decode(exact, "x", max_pixels=24 * 31).shape == (24, 31, 3)
    assert "max_pixels" in reason(exact, max_pixels=24 * 31 - 1)


def test_pillows_warning_about_size_stays_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 31 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(encoded(COLOUR, "PNG")))
    np.testing.assert_array_equal(decode(encoded(COLOUR, "PNG"), "x"), NOISE)  # warnings: errors


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "JPEG2000"])
@pytest.mark.parametrize("tolerant", [False, True])
def test_a_truncated_file_is_refused_wherever_it_ends(
    kind: str, tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)  # others set it
    data = encoded(COLOUR, kind)
    # What ends a GIF, and the padding of a BMP's last row (93 to 96 bytes), hold no pixels.
    pixels_end = len(data) - {"GIF": 2, "BMP": 3}.get(kind, 0)
    for length in range(pixels_end):
        reason(data[:length])
    assert tolerant == ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_damaged_png_is_refused() -> None:
    data = bytearray(png(2, 1, 8, 0, b"\0\x05\x06"))
    assert grey(decode(bytes(data), "x")) == [[5, 6]]
    data[-17] ^= 1  # the checksum of the pixels
    assert reason(bytes(data)) == "is damaged: a checksum does not fit"


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    assert reason(b"") == "is empty (0 bytes)"
    assert reason(b"hello, world").startswith("is not an image of a known kind (PNG, JPEG, TIFF")
    assert reason(encoded(COLOUR, "PCX")).startswith("is not an image")
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n").startswith("is not an image")  # no Ghostscript
    with pytest.raises(PixelsError, match=r"no\.png: cannot be read: no such file"):
        read_image(tmp_path / "no.png")
    with pytest.raises(PixelsError, match="is a directory, not an image file"):
        read_image(tmp_path)
    with pytest.raises(PixelsError, match="is a directory"):
        sha256_file(tmp_path)
    with pytest.raises(PixelsError, match="cannot be"):
        read_image(Path("a\0b"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PixelsError, match="is not a regular file"):
        read_image(tmp_path / "pipe")


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")  # root reads everything

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PixelsError, match=r"a\.png: cannot be read: permission denied"):
        read_image(path)


def test_a_file_too_long_for_an_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(200 << 20)  # sparse
    with pytest.raises(PixelsError, match="is 209715200 bytes, files of up to 67124864 are read"):
        read_image(tmp_path / "long.png", max_pixels=1000)


def test_an_image_carries_the_digest_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(COLOUR, "PNG"))
    image = read_image(path)
    np.testing.assert_array_equal(image.rgb, NOISE)
    assert image.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_file(path)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_tiny_and_extreme_images_are_read(shape: tuple[int, int]) -> None:
    for dtype in (np.uint8, np.uint16):
        data = encoded(Image.fromarray(np.zeros(shape, dtype)), "PNG")
        assert decode(data, "x").shape == (*shape, 3)


def test_an_error_survives_the_way_between_processes() -> None:
    error = PixelsError("a.png", "is empty")
    twin = copy.deepcopy(error)
    assert (str(twin), twin.path, twin.reason) == ("a.png: is empty", "a.png", "is empty")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        rgb = pool.submit(decode, encoded(COLOUR, "PNG"), "x").result()
        np.testing.assert_array_equal(rgb, NOISE)
        with pytest.raises(PixelsError, match=r"a\.png: is empty \(0 bytes\)"):
            pool.submit(decode, b"", "a.png").result()


def test_threads_leave_filters_and_pillow_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 31 - 1)  # every decoding would warn
    data = encoded(COLOUR, "JPEG")
    before = list(warnings.filters)

    def work(_: int) -> bool:
        with contextlib.suppress(PixelsError):
            decode(data[:-20], "x")
        return bool(decode(data, "x").any())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(300)))
    assert list(warnings.filters) == before
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


EXIF = Image.Exif()
EXIF[0x0112] = 6
SMALL = COLOUR.resize((9, 7))
VICTIMS = {
    "png": encoded(SMALL, "PNG", exif=EXIF),
    "palette": encoded(SMALL.quantize(4), "PNG", transparency=1),
    "deep": encoded(Image.fromarray(np.arange(30, dtype=np.uint16).reshape(5, 6)), "PNG"),
    "jpeg": encoded(SMALL, "JPEG", exif=EXIF),
    "progressive": encoded(SMALL.convert("CMYK"), "JPEG", progressive=True),
    "tiff": encoded(SMALL, "TIFF", exif=EXIF),
    "float": encoded(Image.fromarray(np.eye(5, dtype=np.float32)), "TIFF"),
    "gif": encoded(SMALL.quantize(4), "GIF"),
    "webp": encoded(SMALL, "WEBP"),
    "bmp": encoded(SMALL, "BMP"),
    "jp2": encoded(SMALL, "JPEG2000"),
}


@given(st.binary(max_size=300), st.sampled_from([b"", *[data[:8] for data in VICTIMS.values()]]))
@settings(deadline=None)
def test_random_bytes_raise_nothing_but_pixels_errors(data: bytes, start: bytes) -> None:
    with contextlib.suppress(PixelsError):
        decode(start + data, "x")


@given(st.sampled_from(sorted(VICTIMS)), st.data())
@settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))
def test_damaged_images_raise_nothing_but_pixels_errors(name: str, data: st.DataObject) -> None:
    victim = bytearray(VICTIMS[name])
    for place in data.draw(st.lists(st.integers(0, len(victim) - 1), max_size=4)):
        victim[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(victim)) | st.just(len(victim)))
    with contextlib.suppress(PixelsError):
        rgb = decode(bytes(victim[:end]), name)
        assert rgb.ndim == 3
        assert rgb.dtype == np.uint8
