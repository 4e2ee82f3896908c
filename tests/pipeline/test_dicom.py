import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, FileMetaDataset, Sequence, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder
from pydicom.pixels.processing import apply_color_lut, apply_windowing
from pydicom.uid import (
    MPEG2MPML,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from medalign.pipeline.dicom import _shown, _window
from medalign.pipeline.pixels import PixelsError, decode, read_image

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"  # inside the wheel, no network


def dicom(values: Any, syntax: UID = ExplicitVRLittleEndian, **changes: Any) -> bytes:
    """A DICOM file of stored values; a change to None takes an element away."""
    array = np.asarray(values)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data.Rows, data.Columns = array.shape[:2]
    data.SamplesPerPixel = 3 if array.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if array.ndim == 3 else "MONOCHROME2"
    if array.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = array.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    raw = array.astype(array.dtype.newbyteorder("<" if syntax.is_little_endian else ">")).tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OB" if array.dtype.itemsize == 1 else "OW"
    for name, value in changes.items():
        if value is not None:
            setattr(data, name, value)
        elif name in data:
            delattr(data, name)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def item(**elements: Any) -> Dataset:
    data = Dataset()
    for name, value in elements.items():
        setattr(data, name, value)
    return data


def grey(data: bytes, name: str = "scan") -> list[list[int]]:
    rgb = decode(data, name)
    assert rgb.ndim == 3
    assert (rgb == rgb[..., :1]).all()
    levels: list[list[int]] = rgb[..., 0].tolist()
    return levels


def reason(data: bytes, name: str = "scan", **options: Any) -> str:
    with pytest.raises(PixelsError) as caught:
        decode(data, name, **options)
    return str(caught.value.reason)


HOUNSFIELD = np.array([[-1000, -160, 0, 40, 239, 240, 3000]], np.int16)
WINDOW: dict[str, Any] = {"WindowCenter": 40, "WindowWidth": 400}


def test_a_linear_window_is_applied_as_the_standard_says() -> None:
    # PS3.3 C.11.2.1.2.1: y = (x - 39.5) / 399 + 0.5 on 0..1, times 255:
    # -160 -> -0.0 (0), 0 -> 102.26, 40 -> 127.82, 239 -> 255 (clipped at 239.0), 240 -> 255
    assert grey(dicom(HOUNSFIELD, **WINDOW)) == [[0, 0, 102, 128, 255, 255, 255]]


def test_an_exact_window_and_a_sigmoid_are_applied_as_the_standard_says() -> None:
    # C.11.2.1.3.2: (x - 40) / 400 + 0.5: -160 -> 0, 0 -> 0.4 -> 102, 40 -> 127.5, 239 -> 254.36
    exact = dicom(HOUNSFIELD, **WINDOW, VOILUTFunction="LINEAR_EXACT")
    assert grey(exact) == [[0, 0, 102, 128, 254, 255, 255]]
    # C.11.2.1.3.1: 1 / (1 + exp(-4 (x - 40) / 400)): -160 -> 1 / (1 + e^2) = 0.1192 -> 30.4,
    # 0 -> 1 / (1 + e^0.4) = 0.4013 -> 102.3, 240 -> 0.8808 -> 224.6
    sigmoid = dicom(HOUNSFIELD, **WINDOW, VOILUTFunction="SIGMOID")
    assert grey(sigmoid) == [[0, 30, 102, 128, 224, 225, 255]]


@given(
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.floats(-500, 500),
    st.floats(1.5, 2000),
)
@settings(deadline=None)
def test_windows_agree_with_pydicom(function: str, center: float, width: float) -> None:
    data = item(
        PhotometricInterpretation="MONOCHROME2", BitsStored=12, PixelRepresentation=1,
        WindowCenter=str(round(center, 3)), WindowWidth=str(round(width, 3)),
        VOILUTFunction=function,
    )  # fmt: skip
    values = np.arange(-2048, 2048, dtype=np.int16)
    with np.errstate(over="ignore"):
        expected = (apply_windowing(values, data) + 2048) / 4095
        ours = _window(values, float(data.WindowCenter), float(data.WindowWidth), function)
    np.testing.assert_allclose(np.clip(ours, 0, 1), expected, atol=1e-9)


def test_a_window_one_value_wide_is_a_threshold() -> None:
    narrow = dicom(HOUNSFIELD, WindowCenter=40, WindowWidth=1)  # above 39.5
    assert grey(narrow) == [[0, 0, 0, 255, 255, 255, 255]]
    values = np.array([39.4, 39.5, 39.6])
    assert _window(values, 40, 1, "LINEAR").tolist() == [0, 0, 1]


def test_rescale_comes_before_the_window() -> None:
    stored = (HOUNSFIELD + 1024).astype(np.uint16)
    rescaled = dicom(stored, RescaleSlope=1, RescaleIntercept=-1024, **WINDOW)
    assert grey(rescaled) == grey(dicom(HOUNSFIELD, **WINDOW))
    doubled = dicom(HOUNSFIELD[:, 1:5] * 2, RescaleSlope="0.5", RescaleIntercept=0, **WINDOW)
    assert grey(doubled) == [[0, 102, 128, 255]]


def test_of_several_windows_the_first_is_used() -> None:
    data = dicom(HOUNSFIELD, WindowCenter=[40, 500], WindowWidth=[400, 10])
    assert grey(data) == grey(dicom(HOUNSFIELD, **WINDOW))


def test_windows_of_enhanced_objects_are_found() -> None:
    shared = item(
        FrameVOILUTSequence=Sequence([item(**WINDOW)]),
        PixelValueTransformationSequence=Sequence([item(RescaleSlope=1, RescaleIntercept=-1024)]),
    )
    stored = (HOUNSFIELD + 1024).astype(np.uint16)
    data = dicom(stored, SharedFunctionalGroupsSequence=Sequence([shared]), NumberOfFrames=1)
    assert grey(data) == grey(dicom(HOUNSFIELD, **WINDOW))


def test_without_a_window_the_image_is_stretched() -> None:
    # (v - 100) / 300 * 255: 200 -> 85, 250 -> 127.5
    values = np.array([[100, 200], [250, 400]], np.int16)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        assert grey(dicom(values, syntax)) == [[0, 85], [128, 255]]
        assert grey(dicom(values, syntax, WindowCenter="", WindowWidth="")) == [[0, 85], [128, 255]]
    assert grey(dicom(np.full((2, 2), 300, np.uint16))) == [[0, 0], [0, 0]]


def test_padding_does_not_count_when_stretching() -> None:
    values = np.array([[-2000, 100, 250, 400]], np.int16)
    assert grey(dicom(values, PixelPaddingValue=-2000)) == [[0, 0, 128, 255]]
    assert grey(dicom(values + 500, PixelPaddingValue=-1500)) == [[0, 0, 128, 255]]
    only = dicom(np.full((1, 2), -2000, np.int16), PixelPaddingValue=-2000)
    assert grey(only) == [[0, 0]]


def test_eight_bits_stay_as_they_are() -> None:
    values = np.array([[3, 200], [7, 90]], np.uint8)
    assert grey(dicom(values)) == values.tolist()
    assert grey(dicom(values, RescaleSlope=1, RescaleIntercept=0)) == values.tolist()
    assert grey(dicom(values, RescaleSlope=2, RescaleIntercept=0))[0] == [0, 255]
    in_words = dicom(values.astype(np.uint16), BitsStored=8, HighBit=7)
    assert grey(in_words) == values.tolist()
    four = dicom(np.array([[0, 1, 15]], np.uint8), BitsStored=4, HighBit=3)
    assert grey(four) == [[0, 17, 255]]  # 255 / 15


def test_monochrome1_is_inverted() -> None:
    values = np.array([[3, 200]], np.uint8)
    assert grey(dicom(values, PhotometricInterpretation="MONOCHROME1")) == [[252, 55]]
    windowed = dicom(HOUNSFIELD, **WINDOW, PhotometricInterpretation="MONOCHROME1")
    assert grey(windowed) == [[255, 255, 153, 127, 0, 0, 0]]


def test_lookup_tables_replace_rescale_and_window() -> None:
    table = [0, 100, 200, 255]
    voi = item(LUTDescriptor=[4, 10, 8], LUTData=table)
    voi["LUTDescriptor"].VR = voi["LUTData"].VR = "US"
    values = np.array([[0, 10, 11, 12, 13, 99]], np.uint16)
    data = dicom(values, VOILUTSequence=Sequence([voi]), WindowCenter=5, WindowWidth=2)
    assert grey(data) == [[0, 0, 100, 200, 255, 255]]
    modality = item(LUTDescriptor=[4, 10, 16], LUTData=[500, 400, 300, 100], ModalityLUTType="US")
    modality["LUTDescriptor"].VR = modality["LUTData"].VR = "US"
    data = dicom(values, ModalityLUTSequence=Sequence([modality]), RescaleSlope=9)
    assert grey(data) == [[255, 255, 191, 128, 0, 0]]  # (400 - 100) / 400 * 255 = 191.25


def test_a_wide_table_of_narrow_entries_works() -> None:
    """12 bits in, 8 bits out: common in radiography, and more than pydicom's lookup can do."""
    table = (np.arange(4096) // 16).astype(np.uint8)
    for raw, vr in ((table.tobytes(), "OW"), (table.astype("<u2").tobytes(), "OW")):
        voi = item(LUTDescriptor=[4096, 0, 8], LUTData=raw)
        voi["LUTDescriptor"].VR, voi["LUTData"].VR = "US", vr
        values = np.array([[0, 16, 2048, 4095]], np.uint16)
        data = dicom(values, BitsStored=12, HighBit=11, VOILUTSequence=Sequence([voi]))
        assert grey(data) == [[0, 1, 128, 255]]


@given(st.integers(0, 2**16 - 1), st.integers(1, 2000), st.booleans(), st.booleans())
@settings(deadline=None)
def test_tabulating_levels_changes_nothing(
    seed: int, spread: int, windowed: bool, padded: bool
) -> None:
    values = np.random.default_rng(seed).integers(-spread, spread, (9, 9), np.int16)
    changes: dict[str, Any] = {"RescaleSlope": "0.7", "RescaleIntercept": "-3"}
    changes |= WINDOW if windowed else {}
    padding = int(values[0, 0]) if padded else None
    data = dicom(values, **changes, PixelPaddingValue=padding)
    direct = _shown(dcmread(io.BytesIO(data)), values, padding)
    np.testing.assert_array_equal(decode(data, "x")[..., 0], direct)


def test_float_pixels_are_stretched_and_nan_is_refused() -> None:
    values = np.array([[0.5, 1.5, 2.5]], np.float32)
    gone = ("PixelData", "BitsStored", "HighBit", "PixelRepresentation")
    changes: dict[str, Any] = dict.fromkeys(gone)
    data = dicom(values, FloatPixelData=values.tobytes(), **changes)
    assert grey(data) == [[0, 128, 255]]
    broken = np.array([[0.5, np.nan]], np.float32)
    data = dicom(broken, FloatPixelData=broken.tobytes(), **changes)
    assert reason(data) == "holds NaN or infinite values"


RGB = np.random.default_rng(1).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def test_colour_is_kept_and_deep_colour_keeps_its_high_byte() -> None:
    np.testing.assert_array_equal(decode(dicom(RGB), "x"), RGB)
    planes = dicom(RGB, PlanarConfiguration=1, PixelData=RGB.transpose(2, 0, 1).tobytes())
    np.testing.assert_array_equal(decode(planes, "x"), RGB)
    deep = RGB.astype(np.uint16) * 256 + 255
    np.testing.assert_array_equal(decode(dicom(deep), "x"), RGB)
    twelve = dicom(deep >> 4, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(decode(twelve, "x"), RGB)


def test_luminance_and_chroma_become_rgb() -> None:
    ycc = np.array([[[76, 85, 255], [255, 128, 128]]], np.uint8)  # red and white, ITU-R BT.601
    rgb = decode(dicom(ycc, PhotometricInterpretation="YBR_FULL"), "x")
    assert np.abs(rgb.astype(int) - [[[254, 0, 0], [255, 255, 255]]]).max() <= 1


def test_palettes_are_looked_up() -> None:
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        tables = (np.array([[1, 2], [30, 40], [200, 250]]) << (bits - 8)).astype(dtype)
        palette: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
        for name, table in zip(names, tables, strict=True):
            palette[f"{name}Descriptor"] = [2, 0, bits]
            palette[f"{name}Data"] = table.tobytes()
        data = dicom(np.array([[0, 1, 0]], np.uint8), **palette)
        assert decode(data, "x").tolist() == [[[1, 30, 200], [2, 40, 250], [1, 30, 200]]]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("CT_small.dcm", (128, 128)),
        ("MR_small_bigendian.dcm", (64, 64)),
        ("MR_small_RLE.dcm", (64, 64)),
        ("MR_small_padded.dcm", (64, 64)),
        ("SC_rgb_rle_16bit.dcm", (100, 100)),
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100)),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100)),
        ("SC_rgb_small_odd.dcm", (3, 3)),
        ("examples_palette.dcm", (350, 800)),
        ("JPEG2000.dcm", (1024, 256)),
    ],
)
def test_real_files_of_many_codings_are_read(name: str, shape: tuple[int, int]) -> None:
    rgb = read_image(SHIPPED / name).rgb
    assert rgb.shape == (*shape, 3)
    assert rgb.dtype == np.uint8
    assert rgb.max() - rgb.min() > 100
    assert rgb.flags.c_contiguous
    assert not rgb.flags.writeable


def test_codings_of_one_picture_agree() -> None:
    reference = read_image(SHIPPED / "MR_small.dcm").rgb
    for coding in ("RLE", "bigendian", "expb", "implicit", "padded", "jp2klossless"):
        rgb = read_image(SHIPPED / f"MR_small_{coding}.dcm").rgb
        np.testing.assert_array_equal(rgb, reference)
    palette = dcmread(SHIPPED / "examples_palette.dcm")
    expected: NDArray[Any] = apply_color_lut(palette.pixel_array, palette)
    np.testing.assert_array_equal(
        read_image(SHIPPED / "examples_palette.dcm").rgb, expected >> 8 * (expected.itemsize - 1)
    )


def test_files_without_preamble_are_known_by_their_name() -> None:
    values = np.array([[1, 2, 3, 4]], np.uint8)
    bare = dicom(values)[132:]
    assert grey(bare, "A.DCM") == values.tolist()
    assert grey(bare, "a.dicom") == values.tolist()
    meta_end = bare.index(b"\x28\x00\x02\x00")  # the first element after the file's own
    assert grey(bare[meta_end:], "a.dcm") == values.tolist()
    assert reason(bare, "a.png").startswith("is not an image of a known kind")
    assert "without pixel data" in reason(b"hello, world", "a.dcm")


def test_what_is_no_single_picture_is_refused_by_name() -> None:
    assert reason((SHIPPED / "SC_rgb_rle_2frame.dcm").read_bytes()).startswith("holds 2 frames")
    assert reason((SHIPPED / "rtplan.dcm").read_bytes()) == "is DICOM without pixel data"
    assert reason((SHIPPED / "image_dfl.dcm").read_bytes()).startswith("is deflated DICOM")
    assert "number of bytes" in reason((SHIPPED / "MR_truncated.dcm").read_bytes())
    values = np.zeros((1, 2), np.uint8)
    assert "HSV, which is not read" in reason(dicom(RGB, PhotometricInterpretation="HSV"))
    assert "width 0, which LINEAR does not" in reason(dicom(values, WindowCenter=1, WindowWidth=0))
    curve = dicom(values, WindowCenter=1, WindowWidth=9, VOILUTFunction="CURVE")
    assert "VOI LUT function CURVE" in reason(curve)
    short = item(LUTDescriptor=[9, 0, 8], LUTData=[1, 2])
    short["LUTDescriptor"].VR = short["LUTData"].VR = "US"
    assert "2 entries of 8 bits, announced as 9" in reason(
        dicom(values, VOILUTSequence=Sequence([short]))
    )


def test_bombs_are_refused_from_their_header() -> None:
    data = dicom(np.zeros((1, 2), np.uint8), Rows=60_000, Columns=60_000)
    assert reason(data) == "has 60000 x 60000 pixels, at most 178956970 are read (max_pixels)"
    assert decode(dicom(RGB), "x", max_pixels=24).shape == (6, 4, 3)
    assert "at most 23" in reason(dicom(RGB), max_pixels=23)
    assert "deflated" in reason(
        dicom(np.zeros((1, 2), np.uint8), DeflatedExplicitVRLittleEndian), max_pixels=9
    )


@pytest.mark.parametrize(
    ("kind", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)]
)
def test_a_coded_frame_larger_than_announced_is_refused_unseen(kind: str, syntax: UID) -> None:
    values = np.zeros((8, 16), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    frames = encapsulate([buffer.getvalue()])
    assert decode(dicom(values, syntax, PixelData=frames), "x").shape == (8, 16, 3)
    small = dicom(values[:1, :1], syntax, PixelData=frames)
    assert reason(small) == "announces 1 x 1 pixels but its coded frame has 8 x 16"
    if kind == "JPEG2000":  # a box of length 0, on which pydicom walks for ever
        endless = bytearray(buffer.getvalue())
        endless[12:16] = bytes(4)
        data = dicom(values, syntax, PixelData=encapsulate([bytes(endless)]))
        assert reason(data) == "holds a damaged JPEG 2000 frame"


def test_a_missing_decoder_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (SHIPPED / "MR_small_RLE.dcm").read_bytes()
    monkeypatch.setattr(Decoder, "is_available", False)
    assert reason(data) == (
        "holds RLE Lossless pixels, which need a decoder: pip install 'medalign[dicom]'"
    )


def test_a_decoder_that_fails_names_the_one_that_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(np.zeros((4, 4), np.uint8), RLELossless, PixelData=encapsulate([b"\0" * 64]))
    monkeypatch.setattr(Decoder, "missing_dependencies", ["pylibjpeg - requires pylibjpeg>=2.0"])
    said = reason(data)
    assert said.startswith("holds RLE Lossless pixels: ")
    assert said.endswith("; another decoder may read it: pip install 'medalign[dicom]'")


def test_a_film_is_not_read() -> None:
    data = dicom(np.zeros((4, 4), np.uint8), MPEG2MPML, PixelData=encapsulate([b"\0" * 64]))
    assert reason(data).endswith("pixels, which pydicom does not read")


VICTIMS = {
    "plain": dicom(np.arange(30, dtype=np.int16).reshape(5, 6), **WINDOW),
    "big endian": dicom(np.arange(30, dtype=np.uint16).reshape(5, 6), ExplicitVRBigEndian),
    "implicit": dicom(RGB, ImplicitVRLittleEndian),
    "run lengths": (SHIPPED / "rtdose_rle_1frame.dcm").read_bytes(),
}


@given(st.sampled_from(sorted(VICTIMS)), st.data())
@settings(deadline=None, max_examples=300)
def test_damaged_files_raise_nothing_but_pixels_errors(name: str, data: st.DataObject) -> None:
    victim = bytearray(VICTIMS[name])
    for place in data.draw(st.lists(st.integers(128, len(victim) - 1), max_size=4)):
        victim[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(victim)) | st.just(len(victim)))
    with contextlib.suppress(PixelsError):
        assert decode(bytes(victim[:end]), "a.dcm").dtype == np.uint8


@given(st.binary(max_size=300), st.sampled_from([b"", b"\0" * 128 + b"DICM"]))
@settings(deadline=None)
def test_random_bytes_raise_nothing_but_pixels_errors(data: bytes, start: bytes) -> None:
    with contextlib.suppress(PixelsError):
        decode(start + data, "a.dcm")


def test_a_truncated_file_is_refused_wherever_it_ends() -> None:
    for name in ("plain", "implicit"):
        data = VICTIMS[name]
        for length in range(len(data)):
            with contextlib.suppress(PixelsError):
                decode(data[:length], "a.dcm")
                pytest.fail(f"{name} was read from {length} of {len(data)} bytes")
