from collections.abc import Callable
from pathlib import Path

import pytest

from medalign.trainer.preflight.shapes import count_parameters, shape_of
from medalign.trainer.recipe.compose import find_recipe
from medalign.trainer.recipe.cost import (
    COMMAND,
    STUDENTS,
    TOWER,
    cost,
    cost_table,
    paper_rows,
    parameters_of,
)
from medalign.trainer.recipe.recipe import Recipe, RecipeError
from medalign.trainer.recipe.reproduction import script
from medalign.trainer.student import unloaded_model
from medalign.trainer.students.spec import read_student

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
SLAKE = "llava-med-slake"


def row(name: str = SLAKE, *overrides: str) -> Recipe:
    return Recipe.of(find_recipe(name), overrides)


def test_the_table_in_docs_is_what_the_code_computes() -> None:
    table = "\n".join(cost_table(paper_rows()))
    assert table in PAGE.read_text(), f"docs/reproduce.md is old; `{COMMAND}` prints its table"


def test_the_script_in_docs_is_what_the_command_prints() -> None:
    found = "\n".join(script(find_recipe(SLAKE), row()))
    assert found in PAGE.read_text(), f"docs/reproduce.md is old: medalign recipes commands {SLAKE}"


@pytest.mark.parametrize("rotation", [True, False])
def test_parameters_are_those_of_a_real_model(
    students: Callable[..., Path], rotation: bool
) -> None:
    path = students("mistral")
    recipe = row(SLAKE, f"loss.rotation={str(rotation).lower()}", "loss.layer=1")
    tower = sum(
        parameter.numel()
        for name, parameter in unloaded_model(path).named_parameters()
        if "vision_tower" in name
    )
    assert parameters_of(shape_of(read_student(path)), tower, recipe) == count_parameters(
        path, recipe
    )


def test_the_students_have_their_published_sizes() -> None:
    # Mistral-7B-v0.1 7,241,732,096 and Qwen2-7B 7,615,616,512 (of which 28 * 4608 biases of q, k,
    # v) parameters, by their model cards; the tower, and a projector of two linear layers.
    for name, text, width in (
        ("llava-med", 7_241_732_096, 4096),
        ("huatuo-vision", 7_615_616_512 - 28 * 4608, 3584),
    ):
        found = parameters_of(STUDENTS[name], TOWER, row())
        projector = 1024 * width + width + width * width + width
        assert found.frozen - width * width - TOWER - projector == text
        assert found.projector == projector


def test_steps_hours_and_bytes_by_hand() -> None:
    one, eight = cost(row(), 1), cost(row(), 8)
    assert one.steps == eight.steps == 923  # ceil(6 * 4919 / 32)
    assert one.cache_fp16 == 450 * (576 * 1024 * 2 + 576 * 4 + 576)
    assert one.cache_gram == 450 * (61_700 + 576 * 5)
    assert one.train_seconds == pytest.approx(8 * eight.train_seconds)
    # 656 tokens, six operations a weight with checkpointing, at 40% of 989 TFLOP/s
    tokens, weights = 576 + 80, 7.57e9
    assert one.train_seconds == pytest.approx(923 * 32 * 6 * weights * tokens / 395.6e12, rel=0.03)
    assert one.student == pytest.approx(2 * 7.566e9, rel=1e-3)
    assert eight.peak < one.peak < 80e9
    assert (
        one.run
        == 3 * one.checkpoint + 2 * parameters_of(STUDENTS["llava-med"], TOWER, row()).trained
    )


def test_what_is_not_published_is_not_computed() -> None:
    assert cost(row("huatuo-omnimedvqa"), 1).answer_seconds is None
    with pytest.raises(RecipeError, match=r"recipe demo: a cost needs paper\.student"):
        list(cost_table(["demo"]))


def test_a_larger_image_takes_longer_and_a_smaller_expert_less_room() -> None:
    assert cost(row("llava-med-slake+unimed-b"), 1).cache_fp16 < cost(row(), 1).cache_fp16
    mimic, path = cost(row("huatuo-mimic-cxr-report"), 1), cost(row("huatuo-pathvqa"), 1)
    assert mimic.cache_seconds / mimic.images > path.cache_seconds / path.images
