import dataclasses
import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from typer.testing import CliRunner

from medalign.cli import app
from medalign.eval.figures import cache_row as row_figure
from medalign.eval.figures import patches as patch_panels
from medalign.eval.figures.cache_row import CacheShowError, find_row, parse_patch, show
from medalign.teacher_cache.origin import Origin, save_origin
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import PatchGrid, TeacherCacheError

NAMES = ("wide.png", "b/tall.png", "12")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Keep every figure that is saved; it is drawn and written all the same."""
    kept: list[Figure] = []

    def save(figure: Figure, path: Path, **options: Any) -> None:
        kept.append(figure)
        patch_panels.save_figure(figure, path, **options)

    monkeypatch.setattr(row_figure, "save_figure", save)
    return kept


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, one of them called `12`."""
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.new("RGB", (40, 20 + number), (200, 30 * number, 0)).save(folder / name, "PNG")
    return folder


@pytest.fixture
def store(images: Path, synthetic_store: Callable[..., Path]) -> Path:
    content = [hashlib.sha256((images / name).read_bytes()).hexdigest() for name in NAMES]
    return synthetic_store(3, paths=NAMES, content=content, geometry="pad")


def headings(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def heat(figure: Figure, panel: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    layer = figure.axes[panel].get_images()[1]
    return np.ma.asarray(layer.get_array()).filled(np.nan)


@pytest.mark.parametrize("key", ["b/tall.png", "1", "sha256"])
def test_a_row_is_found_by_path_number_and_digest(
    store: Path, images: Path, tmp_path: Path, drawn: list[Figure], key: str
) -> None:
    cache = TeacherCache.open(store)
    key = cache.sha256_of(1) if key == "sha256" else key
    shown = show(cache, key, tmp_path / "new" / "out.png", images=images)
    assert (shown.row, shown.path, shown.image, shown.remark) == (1, "b/tall.png", True, "")
    with Image.open(tmp_path / "new" / "out.png") as picture:
        assert picture.format == "PNG"
    assert drawn[0].get_suptitle() == "b/tall.png"
    for word in ("row 1", "expert", "fp16", "4x4", "geometry pad"):
        assert word in drawn[0].get_supxlabel()


def test_a_path_that_looks_like_a_number_is_a_path_first(store: Path) -> None:
    cache = TeacherCache.open(store)
    assert [find_row(cache, key) for key in ("12", "0")] == [2, 0]


def test_the_maps_are_those_of_the_row(
    store: Path, images: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    cache = TeacherCache.open(store)
    row = cache["wide.png"]
    shown = show(cache, "wide.png", tmp_path / "a.png", images=images)
    most = int(np.argmax(np.where(row.valid, row.attention, -1)))
    assert shown.patch == divmod(most, 4)
    attention = np.where(row.valid, row.attention / row.attention[row.valid].mean(), np.nan)
    np.testing.assert_allclose(heat(drawn[0], 1).ravel(), attention, rtol=1e-6)
    features = row.features.astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    gram = features @ features[most]
    others = row.valid & (np.arange(16) != most)
    np.testing.assert_allclose(heat(drawn[0], 2).ravel()[others], gram[others], atol=1e-5)
    assert "similarity to patch {},{}".format(*shown.patch) in headings(drawn[0])


def test_a_chosen_patch_is_compared_and_framed(
    store: Path, images: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    shown = show(TeacherCache.open(store), "0", tmp_path / "a.png", images=images, patch=(3, 2))
    assert shown.patch == (3, 2)
    assert "similarity to patch 3,2" in headings(drawn[0])
    [frame] = drawn[0].axes[0].patches
    assert isinstance(frame, Rectangle)
    assert frame.get_xy() == pytest.approx(((2 - 0.4) / 4, (3 - 0.4) / 4))


def test_the_image_is_drawn_as_the_expert_saw_it(
    store: Path, images: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    cache = TeacherCache.open(store)
    show(cache, "wide.png", tmp_path / "a.png", images=images)
    square = np.asarray(drawn[0].axes[0].get_images()[0].get_array())
    side = cache.card.expert.image_size
    assert square.shape == (side, side, 3)
    assert tuple(square[0, 0]) == cache.card.fill  # 40 x 20 pixels, padded above and below
    assert tuple(square[side // 2, side // 2]) == (200, 0, 0)


def test_padding_is_hatched_and_takes_no_part(
    store: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    row = TeacherCache.open(store)[0]
    attention = row.attention.copy()
    attention[:4] = 9.0  # the most by far, and padding
    padded = dataclasses.replace(row, attention=attention, valid=np.arange(16) >= 4)
    grid = PatchGrid(4, 4)
    row_figure.draw_row(padded, grid, 5, tmp_path / "a.png", square=None, title="a", facts="b")
    figure = drawn[0]
    for panel in figure.axes[:4]:
        hatched = [c for c in panel.collections if isinstance(c, PatchCollection) and c.get_hatch()]
        assert [len(each.get_paths()) for each in hatched] == [4]
    for at in (1, 2):
        assert np.isnan(heat(figure, at)[0]).all()
        assert np.isfinite(heat(figure, at)[1:]).all()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "12 of 16 are image; hatched: padding" in texts


def missing(images: Path) -> str:
    (images / "wide.png").unlink()
    return "no such file"


def changed(images: Path) -> str:
    Image.new("RGB", (40, 20)).save(images / "wide.png")
    return "another image than the one"


@pytest.mark.parametrize("fault", [missing, changed])
def test_without_its_image_a_row_is_drawn_and_that_is_said(
    store: Path, images: Path, tmp_path: Path, drawn: list[Figure], fault: Callable[[Path], str]
) -> None:
    reason = fault(images)
    shown = show(TeacherCache.open(store), "wide.png", tmp_path / "a.png", images=images)
    assert not shown.image
    assert reason in shown.remark
    assert "image: not there" in headings(drawn[0])
    assert (tmp_path / "a.png").is_file()


def test_images_are_looked_for_where_the_build_found_them(
    store: Path, images: Path, tmp_path: Path
) -> None:
    cache = TeacherCache.open(store)
    shown = show(cache, "0", tmp_path / "a.png")
    assert (shown.image, "--images DIR" in shown.remark) == (False, True)
    command = ("medalign", "cache", "build", "m.jsonl")
    origin = Origin(command=command, manifest="m.jsonl", images=str(images), expert="demo")
    save_origin(store, origin)
    assert show(cache, "0", tmp_path / "a.png").image


@pytest.mark.parametrize("key", ["3", "-1", "nowhere.png", "f" * 64, "99999999999999999999"])
def test_a_key_that_is_nothing_is_one_clear_error(store: Path, key: str) -> None:
    with pytest.raises(CacheShowError, match=r"is no path, sha256 or row of .* has 3 rows"):
        find_row(TeacherCache.open(store), key)


def test_a_row_without_data_is_refused_with_its_reason(
    synthetic_store: Callable[..., Path], tmp_path: Path
) -> None:
    cache = TeacherCache.open(synthetic_store(3, failures={1: "cut short"}))
    with pytest.raises(TeacherCacheError, match="cut short"):
        show(cache, "1", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("text", ["3", "a,b", "1,2,3", "-1,2", ",", "1.0,2"])
def test_a_patch_is_two_numbers(text: str) -> None:
    with pytest.raises(CacheShowError, match="written R,C"):
        parse_patch(text)


def test_a_patch_outside_the_grid_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheShowError, match="columns 0 to 3"):
        show(TeacherCache.open(store), "0", tmp_path / "a.png", patch=(1, 4))


def test_the_command_writes_the_picture_and_says_where(
    store: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["cache", "show", str(store), "b/tall.png", "--patch", "1,2"]
    result = CliRunner().invoke(app, [*words, "--images", str(images)])
    assert result.exit_code == 0, result.output
    assert result.stdout == "row-1.png: row 1, b/tall.png, patch 1,2\n"
    assert (tmp_path / "row-1.png").is_file()
    result = CliRunner().invoke(app, [*words, "--out", "x.png"])
    assert result.exit_code == 0
    assert result.stderr.startswith("without the image: ")
    assert (tmp_path / "x.png").is_file()


@pytest.mark.parametrize("before", [None, b"an older picture"])
def test_a_full_disk_is_named_with_the_picture_and_leaves_nothing_half(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "pictures" / "row.png"
    if before is not None:
        out.parent.mkdir()
        out.write_bytes(before)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        show(TeacherCache.open(store), "wide.png", out)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(out))
    assert [path.read_bytes() for path in out.parent.iterdir()] == ([before] if before else [])
