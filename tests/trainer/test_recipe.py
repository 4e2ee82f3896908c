from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.trainer.recipe.recipe import Recipe, RecipeError

SMALL = "loss:\n  layer: 2\nrun:\n  steps: 3\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        Recipe.from_yaml(write(folder, text), overrides)
    return str(error.value).replace(str(folder) + "/", "")


def test_a_misspelt_key_names_its_line_and_the_known_ones(tmp_path: Path) -> None:
    text = "loss:\n  layer: 2\n  alhpa: 1.0\nrun:\n  steps: 3\n"
    assert refusal(tmp_path, text).startswith("r.yaml:3: unknown key loss.alhpa; known here: layer")


def test_a_misspelt_section_names_its_line(tmp_path: Path) -> None:
    assert "r.yaml:5: unknown key optimizer" in refusal(tmp_path, SMALL + "optimizer:\n  lr: 1\n")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("loss: {layer: -1}\nrun: {steps: 3}\n", "r.yaml:1: loss.layer: input should be greater"),
        ("loss: {layer: two}\nrun: {steps: 3}\n", "r.yaml:1: loss.layer: input should be a valid"),
        ("loss: {layer: 1, beta: .inf}\nrun: {steps: 3}\n", "r.yaml:1: loss.beta"),
        ("loss: {layer: 1}\nrun: {steps: 3, epochs: 1}\n", "r.yaml:2: run: give either"),
        ("loss: {layer: 1}\nrun: {seed: 1}\n", "r.yaml:2: run: give either run.epochs or"),
        ("loss: {layer: 1}\n", "r.yaml: run is missing"),
        ("loss: {layer: 1}\nloss: {layer: 2}\nrun: {steps: 1}\n", "r.yaml:2: loss is given twice"),
        ("- 1\n", "r.yaml: a recipe is a mapping of sections"),
        ("", "r.yaml: a recipe is a mapping of sections"),
        ("loss: [\n", "r.yaml:2: no valid YAML"),
    ],
)
def test_a_wrong_value_names_its_line(tmp_path: Path, text: str, wanted: str) -> None:
    assert wanted in refusal(tmp_path, text)


def test_overrides_win_and_are_named_when_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    recipe = Recipe.from_yaml(path, ["optim.lr=1e-3", "loss.rotation=false", "run.steps=7"])
    assert (recipe.optim.lr, recipe.loss.rotation, recipe.run.steps) == (1e-3, False, 7)
    assert refusal(tmp_path, SMALL, "loss.alhpa=1").startswith("--set loss.alhpa=1: unknown key")
    assert "section.key=value" in refusal(tmp_path, SMALL, "alpha=1")


def test_a_number_with_an_exponent_and_no_dot_is_a_number(tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(write(tmp_path, SMALL + "optim:\n  lr: 2e-4\n"))
    assert recipe.optim.lr == 2e-4


@given(
    layer=st.integers(0, 40),
    alpha=st.floats(0, 10),
    beta=st.floats(0, 10),
    steps=st.integers(1, 10**6),
    norm=st.sampled_from(["sum", "softmax", "l2"]),
)
def test_a_recipe_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    layer: int,
    alpha: float,
    beta: float,
    steps: int,
    norm: str,
) -> None:
    loss = {"layer": layer, "alpha": alpha, "beta": beta, "attention": norm}
    recipe = Recipe.model_validate({"loss": loss, "run": {"steps": steps}})
    path = write(tmp_path_factory.mktemp("recipe"), recipe.to_yaml())
    assert Recipe.from_yaml(path) == recipe


def test_one_line_of_a_list_is_named(tmp_path: Path) -> None:
    text = SMALL + "optim:\n  betas:\n    - 0.9\n    - 2\n"
    assert refusal(tmp_path, text).startswith("r.yaml:8: optim.betas.1: input should be less than")


def test_what_the_paper_says_is_kept_but_decides_no_run(tmp_path: Path) -> None:
    number = "{metric: bleu, value: 10, called: BLEU, source: paper, table: Table 1}"
    paper = f"paper:\n  data: slake\n  decoders: [beam]\n  numbers: [{number}]\n"
    recipe = Recipe.from_yaml(write(tmp_path, SMALL + paper))
    assert recipe.paper.numbers[0].value == 10.0
    assert Recipe.from_yaml(write(tmp_path, recipe.to_yaml())) == recipe
    assert recipe.flat() == Recipe.from_yaml(write(tmp_path, SMALL)).flat()
    assert "r.yaml:6: unknown key paper.dta; known here: student, data" in refusal(
        tmp_path, SMALL + "paper:\n  dta: slake\n"
    )
    assert "r.yaml:7: unknown key paper.numbers.0.metrc; known here: metric" in refusal(
        tmp_path, SMALL + "paper:\n  numbers:\n    - metrc: bleu\n"
    )
