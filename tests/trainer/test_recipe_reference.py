from pathlib import Path

import pytest

from medalign.cli import main
from medalign.trainer.recipe.paper import PaperNumber, PaperSection
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.recipe.reference import COMMAND, reference
from medalign.trainer.run.folder import FREE_KEYS

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
SMALL = {"loss": {"layer": 1}, "run": {"steps": 1}}


def test_the_page_in_docs_is_what_the_code_says() -> None:
    assert PAGE.read_text() == reference(), f"docs/recipe.md is old; run: {COMMAND}"


def test_every_key_is_there_with_its_meaning_and_whether_it_may_change() -> None:
    rows, section = {}, ""
    for line in reference().splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif line.startswith("| `"):
            key, value, default, meaning = (c.strip() for c in line.strip("|").split(" | "))
            rows[f"{section}.{key.strip('`*' + chr(92))}"] = (key, value, default, meaning)
    paper = {f"paper.{key}" for key in PaperSection.model_fields}
    paper |= {f"paper.numbers.{key}" for key in PaperNumber.model_fields}
    assert rows.keys() == Recipe.model_validate(SMALL).flat().keys() | paper
    assert {name for name, (key, *_) in rows.items() if key.endswith("*")} == FREE_KEYS | paper
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


def test_the_reference_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "recipes", "reference") == 0
    assert capsys.readouterr().out == reference()
