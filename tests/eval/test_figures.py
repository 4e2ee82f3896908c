import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from medalign.eval.figures import figures
from medalign.eval.figures import patches as patch_panels
from medalign.eval.figures.figures import attention_overlay, loss_curves, similarity_map
from medalign.teacher_cache.schema import PatchGrid

GRID = PatchGrid(2, 3)
IMAGE = np.full((12, 12, 3), 128, np.uint8)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Keep every figure that is saved; it is drawn and written all the same."""
    kept: list[Figure] = []

    def save(figure: Figure, path: Path) -> None:
        kept.append(figure)
        patch_panels.save_figure(figure, path)

    monkeypatch.setattr(figures, "save_figure", save)
    return kept


def heats(figure: Figure) -> list[NDArray[np.float64]]:
    """Return the values of the heat layers, panel by panel."""
    layers = [axes.get_images()[1] for axes in figure.axes if len(axes.get_images()) > 1]
    return [
        np.ma.masked_invalid(np.ma.asarray(layer.get_array())).filled(np.nan) for layer in layers
    ]


def texts(figure: Figure) -> str:
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    titles = [axes.get_title(loc=loc) for axes in figure.axes for loc in ("left", "center")]
    return "\n".join([*legends, *titles, figure.get_supxlabel(), figure.get_suptitle()])


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_every_term_gets_a_panel_and_every_run_a_line(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "new" / "loss.png"
    steps = [{"step": step, "lm": 1 / step, "vis": 0.5, "att": 0.1} for step in (1, 2, 3)]
    loss_curves({"plain": steps, "medalign": steps[:2]}, path)
    assert len(drawn[0].axes) == 3
    lines = drawn[0].axes[0].get_lines()
    assert [list(np.asarray(line.get_xdata())) for line in lines] == [[1, 2, 3], [1, 2]]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 2
    for word in ("plain", "medalign", "lm", "vis", "att"):
        assert word in texts(drawn[0])
    width, height = size_of(path)
    assert width > height > 100


def test_a_term_that_no_run_has_gets_no_panel(tmp_path: Path, drawn: list[Figure]) -> None:
    loss_curves({"a": [{"step": 1, "lm": 1.0, "att": math.nan}]}, tmp_path / "loss.png")
    assert len(drawn[0].axes) == 1


def test_missing_values_leave_a_gap_and_steps_are_sorted(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    steps: list[dict[str, float]] = [{"step": 3, "lm": 3.0}, {"step": 1, "lm": 1.0}, {"step": 2}]
    loss_curves({"a": steps}, tmp_path / "loss.png")
    values = np.asarray(drawn[0].axes[0].get_lines()[0].get_ydata())
    assert np.array_equal(values, [1.0, np.nan, 3.0], equal_nan=True)


def test_long_runs_get_a_running_mean_beside_every_step(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    values = [float(step % 2) for step in range(200)]
    steps = [{"step": float(step), "lm": value} for step, value in enumerate(values)]
    loss_curves({"a": steps}, tmp_path / "loss.png")
    raw, mean = (np.asarray(line.get_ydata()) for line in drawn[0].axes[0].get_lines())
    assert list(raw) == values
    assert mean[5:-5] == pytest.approx(0.5)  # windows of 10 steps hold five ones each
    assert "running mean" in texts(drawn[0])


def test_runs_without_any_term_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss curves take runs"):
        loss_curves({"a": [{"step": 1}]}, tmp_path / "loss.png")
    with pytest.raises(ValueError, match="loss curves take runs"):
        loss_curves({}, tmp_path / "loss.png")


def test_maps_of_other_totals_share_one_scale(tmp_path: Path, drawn: list[Figure]) -> None:
    map_ = np.array([1.0, 2, 3, 4, 5, 6])
    maps = {"expert": map_, "before": map_ / 1000, "after": np.ones(6)}
    attention_overlay(IMAGE, maps, GRID, tmp_path / "map.png", title="which?")
    expert, before, after = heats(drawn[0])
    # Divided by the mean, 3.5; rows of the grid run down.
    assert expert == pytest.approx((map_ / 3.5).reshape(2, 3))
    assert before == pytest.approx(expert)
    assert after == pytest.approx(np.ones((2, 3)))
    scales = {axes.get_images()[1].get_clim() for axes in drawn[0].axes[1:4]}
    assert len(scales) == 1
    for word in ("image", "expert", "before", "after", "which?"):
        assert word in texts(drawn[0])
    size_of(tmp_path / "map.png")


def test_padding_is_hatched_uncoloured_and_not_counted(tmp_path: Path, drawn: list[Figure]) -> None:
    valid = [True, True, False, True, True, False]
    map_ = np.array([1.0, 3, 100, 1, 3, 100])
    attention_overlay(IMAGE, {"a": map_}, GRID, tmp_path / "map.png", valid=valid)
    expected = np.array([[0.5, 1.5, np.nan], [0.5, 1.5, np.nan]])
    assert np.allclose(heats(drawn[0])[0], expected, equal_nan=True)
    for axes in drawn[0].axes[:2]:
        (padding,) = (each for each in axes.collections if isinstance(each, PatchCollection))
        assert padding.get_hatch() == "////"
        lefts = [path.get_extents().x0 for path in padding.get_paths()]
        assert lefts == pytest.approx([2 / 3, 2 / 3])
    assert "padding" in texts(drawn[0])


@pytest.mark.parametrize(
    "mask", [np.array([0, 1, 0, 0, 1, 0]), np.eye(12) > 0, np.zeros(6), np.ones((12, 12))]
)
def test_a_mask_may_be_patches_or_pixels(
    tmp_path: Path, drawn: list[Figure], mask: NDArray[np.float64]
) -> None:
    attention_overlay(IMAGE, {"a": np.ones(6)}, GRID, tmp_path / "map.png", mask=mask)
    assert "mask" in texts(drawn[0])


def test_a_mask_outlines_its_patches(tmp_path: Path, drawn: list[Figure]) -> None:
    mask = np.array([0, 1, 0, 0, 0, 0])
    attention_overlay(IMAGE, {"a": np.ones(6)}, GRID, tmp_path / "map.png", mask=mask)
    outline = drawn[0].axes[0].collections[-1].get_paths()[0].get_extents()
    found = outline.x0, outline.x1, outline.y0, outline.y1
    assert found == pytest.approx((1 / 3, 2 / 3, 0, 1 / 2), abs=0.003)


def test_the_chosen_patch_is_framed(tmp_path: Path, drawn: list[Figure]) -> None:
    similarity_map(IMAGE, {"a": np.linspace(-1, 1, 6)}, 4, GRID, tmp_path / "map.png")
    for axes in drawn[0].axes[:2]:
        box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        centre = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        assert centre == pytest.approx((1 / 2, 3 / 4))  # row 1, column 1 of 2 x 3
    assert drawn[0].axes[1].get_images()[1].get_clim() == (-1, 1)
    size_of(tmp_path / "map.png")


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path: Path) -> None:
    name = "_a $x_{ $"
    loss_curves({name: [{"step": 1, "lm": 1.0}]}, tmp_path / "loss.png")
    attention_overlay(IMAGE, {name: np.ones(6)}, GRID, tmp_path / "map.png", title=name)


@pytest.mark.parametrize(
    ("map_", "problem"),
    [
        (np.ones(5), r"map 'a' takes shape \(6,\) on a grid 2x3, got \(5,\)"),
        (np.array([1, 1, 1, 1, 1, math.nan]), "map 'a' holds NaN"),
        (np.array([1, 1, 1, 1, 1, -0.1]), "map 'a' is no attention"),
        (np.zeros(6), "map 'a' is no attention"),
    ],
)
def test_a_map_that_is_no_attention_is_refused(
    tmp_path: Path, map_: NDArray[np.float64], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        attention_overlay(IMAGE, {"a": map_}, GRID, tmp_path / "map.png")


def test_other_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path, ones = tmp_path / "map.png", {"a": np.ones(6)}
    with pytest.raises(ValueError, match="at least one map"):
        attention_overlay(IMAGE, {}, GRID, path)
    with pytest.raises(ValueError, match=r"an image is uint8 \[S, S, 3\]"):
        attention_overlay(IMAGE[:6], ones, GRID, path)
    with pytest.raises(ValueError, match="`valid` marks image patches"):
        attention_overlay(IMAGE, ones, GRID, path, valid=np.zeros(6))
    with pytest.raises(ValueError, match="a mask takes shape"):
        attention_overlay(IMAGE, ones, GRID, path, mask=np.ones((3, 2)))
    with pytest.raises(ValueError, match="patch must be 0 to 5"):
        similarity_map(IMAGE, ones, 6, GRID, path)
    assert not path.exists()


def test_figures_never_load_pyplot() -> None:
    code = (
        "import sys, medalign.eval.figures.figures\n"
        "sys.exit('matplotlib.pyplot was loaded' if 'matplotlib.pyplot' in sys.modules else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
