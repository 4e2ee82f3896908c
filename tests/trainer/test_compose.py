from pathlib import Path

import pytest

from medalign.trainer.recipe.compose import find_recipe
from medalign.trainer.recipe.recipe import Recipe, RecipeError

BASE = "loss: {layer: 2, alpha: 0.5}\nrun:\n  steps: 3\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write recipes into, where names of files start from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "sub").mkdir()
    return tmp_path


def refusal(name: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        Recipe.of(find_recipe(name), overrides)
    return str(error.value)


def test_later_files_win_key_by_key_and_set_comes_last(write: Path) -> None:
    (write / "sub" / "more.yaml").write_text(
        "extends: [../base.yaml]\nloss: {beta: 0.25}\noptim: {betas: [0.1, 0.2]}\n"
    )
    (write / "mine.yaml").write_text(
        "extends: [sub/more.yaml]\nloss: {alpha: 2}\noptim: {betas: [0.3, 0.4]}\n"
    )
    recipe = Recipe.of(find_recipe("mine.yaml"), ["loss.layer=7"])
    assert (recipe.loss.layer, recipe.loss.alpha, recipe.loss.beta) == (7, 2.0, 0.25)
    assert recipe.optim.betas == (0.3, 0.4)  # a list is replaced as a whole
    assert recipe.run.steps == 3


def test_of_two_parts_the_right_one_wins_whatever_each_extends(write: Path) -> None:
    (write / "a.yaml").write_text("extends: [base.yaml]\nloss: {alpha: 1}\n")
    (write / "b.yaml").write_text("loss: {alpha: 3}\n")
    for order, wanted in (("a.yaml, b.yaml", 3.0), ("b.yaml, a.yaml", 1.0)):
        (write / "mine.yaml").write_text(f"extends: [{order}]\n")
        assert Recipe.of(find_recipe("mine.yaml")).loss.alpha == wanted
    assert Recipe.of(find_recipe("a.yaml+b.yaml")).loss.alpha == 3.0


def test_a_name_plus_a_part_is_the_recipe_changed_by_the_part(write: Path) -> None:
    source = find_recipe("llava-med-slake+no-att+layer-12")
    assert source.name == "llava-med-slake+no-att+layer-12"
    before = Recipe.of(find_recipe("llava-med-slake")).flat()
    after = Recipe.of(source).flat()
    assert {key for key in after if after[key] != before[key]} == {"loss.beta", "loss.layer"}
    (write / "odd+name.yaml").write_text(BASE)
    assert find_recipe("odd+name.yaml+no-att").name == "odd+name+no-att"
    assert Recipe.of(find_recipe("sub/../base.yaml+no-vis")).loss.alpha == 0


def test_a_wrong_value_is_named_where_it_was_given_last(write: Path) -> None:
    (write / "bad.yaml").write_text("\n\nloss:\n  alpha: -1\n")
    (write / "mine.yaml").write_text("extends:\n  - base.yaml\n  - bad.yaml\nloss:\n  beta: 1\n")
    assert refusal("mine.yaml").startswith("bad.yaml:4: loss.alpha: input should be greater")
    assert refusal("base.yaml+bad.yaml").startswith("bad.yaml:4: loss.alpha")
    (write / "bad.yaml").write_text("loss:\n  alhpa: 1\n")
    assert refusal("mine.yaml").startswith("bad.yaml:2: unknown key loss.alhpa; known here: layer")
    (write / "bad.yaml").write_text("run: {epochs: 2}\n")
    assert refusal("mine.yaml").startswith("bad.yaml:1: run: give either run.epochs or run.steps")
    assert Recipe.of(find_recipe("mine.yaml"), ["run.steps=null"]).run.epochs == 2
    assert refusal("mine.yaml", "loss.alpha=x").startswith("--set loss.alpha=x: loss.alpha")


def test_names_that_are_nowhere_are_named_with_their_line(write: Path) -> None:
    (write / "mine.yaml").write_text("run: {steps: 1}\nextends:\n  - paper\n  - slke\n")
    told = refusal("mine.yaml")
    assert told.startswith("mine.yaml:4: extends: there is no part 'slke' (did you mean slake?)")
    (write / "mine.yaml").write_text("extends: [sub/none.yaml]\n")
    assert refusal("mine.yaml") == "mine.yaml:1: extends: there is no file sub/none.yaml"
    (write / "mine.yaml").write_text("extends: paper\n")
    assert refusal("mine.yaml").startswith("mine.yaml:1: extends takes a list of parts or files")
    (write / "mine.yaml").write_text("extends: [base.yaml]\nextends: [base.yaml]\n")
    assert refusal("mine.yaml") == "mine.yaml:2: extends is given twice"
    assert "there is no part 'noatt' (did you mean no-att?)" in refusal("base.yaml+noatt")
    assert "no recipe 'nosuch': not a file, and medalign ships none of that" in refusal("nosuch")
    assert "(did you mean llava-med-slake?)" in refusal("lava-med-slake")
    assert refusal("slake").startswith("'slake' is a part, not a whole recipe")


def test_a_circle_is_refused_and_told(write: Path) -> None:
    (write / "a.yaml").write_text("extends: [b.yaml]\n")
    (write / "b.yaml").write_text("\nextends: [sub/../a.yaml]\n")
    assert refusal("a.yaml") == "b.yaml:2: extends goes in a circle: a.yaml -> b.yaml -> a.yaml"
    (write / "a.yaml").write_text("extends: [a.yaml]\n")
    assert refusal("a.yaml") == "a.yaml:1: extends goes in a circle: a.yaml -> a.yaml"


def test_the_same_part_may_stand_in_two_branches(write: Path) -> None:
    for name in ("a", "b"):
        (write / f"{name}.yaml").write_text("extends: [base.yaml]\n")
    (write / "mine.yaml").write_text("extends: [a.yaml, b.yaml]\n")
    assert Recipe.of(find_recipe("mine.yaml")) == Recipe.from_yaml(write / "base.yaml")


def test_a_mark_goes_with_the_value_that_it_stood_beside(write: Path) -> None:
    (write / "a.yaml").write_text(
        "extends: [base.yaml]\npaper:\n  assumed: {loss.alpha: a guess, run.steps: a guess}\n"
    )
    assert set(Recipe.of(find_recipe("a.yaml")).paper.assumed) == {"loss.alpha", "run.steps"}
    assert set(Recipe.of(find_recipe("a.yaml+no-vis")).paper.assumed) == {"run.steps"}
    assert set(Recipe.of(find_recipe("a.yaml"), ["run.steps=9"]).paper.assumed) == {"loss.alpha"}


@pytest.mark.parametrize(
    ("mark", "why"),
    [("loss.lyer", "is no key of a recipe"), ("optim.lr", "is not set in this recipe")],
)
def test_a_mark_must_stand_beside_a_value(write: Path, mark: str, why: str) -> None:
    (write / "a.yaml").write_text(f"extends: [base.yaml]\npaper:\n  assumed:\n    {mark}: so\n")
    assert refusal("a.yaml") == f"a.yaml:4: paper.assumed names {mark}, which {why}"


def test_a_user_builds_on_a_shipped_recipe(write: Path) -> None:
    (write / "mine.yaml").write_text("extends: [llava-med-slake, aligned]\nrun: {epochs: 2}\n")
    recipe = Recipe.of(find_recipe("mine.yaml"))
    assert (recipe.run.epochs, recipe.expert.mode, recipe.lora.rank) == (2, "aligned", 32)


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "[" * 5000 + "\n"])
def test_values_nested_without_end_are_refused(write: Path, text: str) -> None:
    (write / "a.yaml").write_text(text)
    assert "nested without end" in refusal("a.yaml")
    with pytest.raises(RecipeError, match="no valid YAML"):
        Recipe.of(find_recipe("base.yaml"), [f"optim.lr={'[' * 5000}"])
