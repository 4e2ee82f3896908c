"""Copies share a hash, other images do not, and plain images are not compared at all."""

import errno
import fcntl
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from medalign.pipeline.decode import Unreadable
from medalign.pipeline.hygiene.fingerprints import FingerprintFileError, fingerprint_file
from medalign.pipeline.hygiene.near_duplicates import (
    BITS,
    DEFINITE,
    Fingerprint,
    fingerprint,
    near_images,
    read_fingerprint,
)
from medalign.pipeline.pixels import decode, read_image

Pixels = NDArray[np.uint8]
SAMPLE = Path(__file__).parents[3] / "demo" / "sample" / "images"
DISTANCE = 16.0


def copies(rgb: Pixels) -> dict[str, Pixels]:
    height, width = rgb.shape[:2]
    image = Image.fromarray(rgb)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=40)
    return {
        "recompressed": decode(jpeg.getvalue(), "copy.jpg"),
        "half": np.asarray(image.resize((width // 2, height // 2))),
        "square": np.asarray(image.resize((224, 224))),
        "brighter": np.clip(rgb.astype(int) + 12, 0, 255).astype(np.uint8),
    }


def distance(one: Fingerprint, other: Fingerprint, most: float = BITS) -> float | None:
    near = next(iter(near_images([one], [other], most)))
    return float(near.distances[0]) if len(near.numbers) else None


@pytest.fixture(scope="module")
def images() -> list[Pixels]:
    return [read_image(path).rgb for path in sorted(SAMPLE.iterdir())]


def test_copies_are_near_and_other_images_of_the_same_kind_are_far(images: list[Pixels]) -> None:
    prints = [fingerprint(rgb) for rgb in images]
    for place, rgb in enumerate(images):
        for name, copy in copies(rgb).items():
            found = next(iter(near_images(prints, [fingerprint(copy)], DISTANCE)))
            assert found.numbers.tolist() == [place], (place, name)
            assert fingerprint(copy).pixels != prints[place].pixels


def test_resaving_without_loss_keeps_the_pixels_digest(
    tmp_path: Path, images: list[Pixels]
) -> None:
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    Image.fromarray(images[0]).save(tmp_path / "b.bmp")
    one, other = read_fingerprint(tmp_path / "a.png"), read_fingerprint(tmp_path / "b.bmp")
    assert one == other
    assert isinstance(one, Fingerprint)
    turned = images[0].transpose(1, 0, 2)
    assert fingerprint(turned).pixels != one.pixels


def test_sixteen_bits_are_read_as_training_reads_them(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 256, (80, 90))
    Image.fromarray((deep * 257).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.uint8)).save(tmp_path / "plain.png")
    assert read_fingerprint(tmp_path / "deep.png") == read_fingerprint(tmp_path / "plain.png")


def test_blank_and_nearly_blank_images_match_nothing() -> None:
    noise = np.random.default_rng(1)
    blank = [
        np.full((100, 120, 3), 0, np.uint8),
        np.full((64, 64, 3), 200, np.uint8),
        (128 + noise.integers(-3, 4, (300, 300, 1))).astype(np.uint8).repeat(3, axis=2),
    ]
    prints = [fingerprint(rgb) for rgb in blank]
    assert all(each.plain for each in prints)
    for near in near_images(prints, prints, BITS):
        assert not len(near.numbers)


def test_a_symmetric_image_is_near_its_rescaled_copy(images: list[Pixels]) -> None:
    # Half of the DCT coefficients of a mirrored image are 0, and would be noise as signs.
    mirrored = np.concatenate([images[3], images[3][:, ::-1]], axis=1)
    smaller = np.asarray(Image.fromarray(mirrored).resize((300, 150)))
    found = distance(fingerprint(mirrored), fingerprint(smaller), DISTANCE)
    assert found is not None


hashes = st.tuples(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32)).map(
    lambda pair: Fingerprint("", bytes(a & b for a, b in zip(*pair, strict=True)), pair[1])
)


@given(st.lists(hashes, max_size=6), st.lists(hashes, max_size=3), st.integers(0, 200))
def test_the_blocked_search_equals_counting_bits_one_by_one(
    train: list[Fingerprint], test: list[Fingerprint], most: int
) -> None:
    for other, near in zip(test, near_images(train, test, most), strict=True):
        expected: dict[int, float] = {}
        for place, one in enumerate(train):
            common = int.from_bytes(one.definite) & int.from_bytes(other.definite)
            unlike = (int.from_bytes(one.signs) ^ int.from_bytes(other.signs)) & common
            if common.bit_count() >= DEFINITE:
                found = BITS * unlike.bit_count() / common.bit_count()
                expected |= {place: found} if found <= most else {}
        assert dict(zip(near.numbers.tolist(), near.distances.tolist(), strict=True)) == expected
        assert sorted(near.distances.tolist()) == near.distances.tolist()


def test_a_file_that_is_no_image_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert read_fingerprint(tmp_path / "a.png") == Unreadable("is empty (0 bytes)")


def test_kept_fingerprints_come_back_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "prints.jsonl"
    prints = {
        f"{k:064x}": Fingerprint(f"{k + 9:064x}", bytes([k] * 32), b"\xff" * 32) for k in (1, 2)
    }
    with fingerprint_file(path) as kept:
        for content, each in prints.items():
            kept.add(content, each)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with fingerprint_file(path) as kept:
        assert list(kept.known) == list(prints)[:1]
        kept.add(list(prints)[1], prints[list(prints)[1]])
    assert path.read_bytes() == whole
    with fingerprint_file(path) as kept:
        assert kept.known == prints


@pytest.mark.parametrize("content", [b"{}\n", b"hello", b'["a"]\n', b"\xff\n"])
def test_another_file_is_never_overwritten_with_fingerprints(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(FingerprintFileError, match=r"notes\.txt"), fingerprint_file(path):
        pass
    assert path.read_bytes() == content


def test_two_runs_never_write_to_one_file_of_fingerprints(tmp_path: Path) -> None:
    path = tmp_path / "prints.jsonl"
    with fingerprint_file(path) as kept:
        with pytest.raises(FingerprintFileError, match="another run"), fingerprint_file(path):
            pass
        kept.add("1", Fingerprint("2", bytes(32), bytes(32)))
    with fingerprint_file(path) as kept:
        assert list(kept.known) == ["1"]


def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with fingerprint_file(tmp_path / "prints.jsonl") as kept:
        assert not kept.known
