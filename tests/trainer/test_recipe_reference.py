from pathlib import Path

import pytest

from medalign.cli import main
from medalign.trainer.recipe import Recipe, shipped_recipes
from medalign.trainer.recipe_reference import COMMAND, reference
from medalign.trainer.run_folder import FREE_KEYS

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
SMALL = {"loss": {"layer": 1}, "run": {"steps": 1}}


def test_the_page_in_docs_is_what_the_code_says() -> None:
    assert PAGE.read_text() == reference(), f"docs/recipe.md is old; run: {COMMAND}"


def test_every_key_is_there_with_its_meaning_and_whether_it_may_change() -> None:
    rows, section = {}, ""
    for line in reference().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| `"):
            key, value, default, meaning = (c.strip() for c in line.strip("|").split(" | "))
            rows[f"{section}.{key.strip('`*' + chr(92))}"] = (key, value, default, meaning)
    assert rows.keys() == Recipe.model_validate(SMALL).flat().keys()
    assert {name for name, (key, *_) in rows.items() if key.endswith("*")} == FREE_KEYS
    assert all(value and default and meaning for _, value, default, meaning in rows.values())
    assert rows["loss.layer"][1:3] == ("integer, at least 0", "required")
    assert rows["optim.betas"][1:3] == ("list of 2: number, at least 0, below 1", "`[0.9, 0.999]`")
    assert rows["run.epochs"][1:3] == ("number, above 0 or `null`", "`null`")
    assert rows["student.dtype"][1:3] == ("`auto`, `fp32`, `bf16`", "`auto`")


def test_free_keys_are_keys() -> None:
    assert Recipe.model_validate(SMALL).flat().keys() >= FREE_KEYS


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["medalign", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_recipes_are_listed_shown_and_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(monkeypatch, "recipes") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == sorted(shipped_recipes())
    assert all(len(line.split()) > 3 for line in listed)
    assert command(monkeypatch, "recipes", "show", "demo", "--set", "run.steps=7") == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    shown = Recipe.from_yaml(path)
    assert shown == Recipe.from_yaml(shipped_recipes()["demo"], ["run.steps=7"])
    assert command(monkeypatch, "recipes", "reference") == 0
    assert capsys.readouterr().out == reference()
    assert command(monkeypatch, "recipes", "show", "nosuch") == 2
    assert "no recipe 'nosuch'" in capsys.readouterr().err
