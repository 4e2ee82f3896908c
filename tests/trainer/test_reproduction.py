"""The commands of rows: each must be one that the command line takes, to the last word."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from medalign.cli import app, main
from medalign.trainer.recipe.compose import find_recipe, shipped_recipes, shipped_variants
from medalign.trainer.recipe.cost import cost, paper_rows
from medalign.trainer.recipe.recipe import Recipe, RecipeError
from medalign.trainer.recipe.reproduction import script, stages

ALL = [("medalign", *parts) for parts in (
    ("student", "convert"),
    ("data", "prepare"),
    ("cache", "build"),
    ("cache", "seal"),
    ("train",),
    ("eval", "generate"),
    ("eval", "score"),
)]  # fmt: skip


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """Let the real command line read words, without running anything or looking for files.

    Raises:
        KeyError: there is no such command.
        typer's usage errors: an unknown option or choice, a missing argument.
    """
    command: Any = typer.main.get_command(app)
    _, *rest = words
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    for parameter in command.params:
        parameter.callback = None
    found: dict[str, Any] = command.make_context(words[1], rest).params
    return found


def words_of(name: str, gpus: int = 1) -> Iterator[tuple[str, ...]]:
    source = find_recipe(name)
    for stage in stages(source, Recipe.of(source), gpus):
        yield from stage.commands


@pytest.mark.parametrize("name", paper_rows())
def test_the_command_line_takes_every_command_of_a_row(name: str) -> None:
    found = list(words_of(name))
    for words in found:
        parsed(words)
    assert [known for known in ALL if any(w[: len(known)] == known for w in found)] == ALL


@pytest.mark.parametrize("variant", shipped_variants())
def test_the_command_line_takes_every_command_of_a_variant(variant: str) -> None:
    name = f"llava-med-iu-xray-report+{variant}"
    commands = list(words_of(name))
    for words in commands[2:]:  # the others are the row's own
        parsed(words)
    train = next(words for words in commands if words[1] == "train")
    assert parsed(train)["recipe"] == name
    assert parsed(train)["out"] == Path(f"runs/{name}")


def test_what_one_command_writes_the_next_one_reads() -> None:
    convert, prepare, build, seal, train, ask, judge, *_ = (
        parsed(words) for words in words_of("llava-med-slake")
    )
    assert train["student"] == convert["out"]
    assert train["manifest"] == build["manifest"] == prepare["out"] / "train.jsonl"
    assert train["cache"] == build["out"] == seal["store"]
    assert (train["out"], ask["out"]) == (ask["source"], judge["predictions"])
    assert ask["manifest"] == judge["manifest"] == prepare["out"] / "test.jsonl"
    assert ask["images"] == train["images"] == build["images"] == prepare["out"] / "images"
    assert (ask["beams"], ask["max_new_tokens"]) == (5, 1024)


def test_expert_and_mode_of_the_cache_are_those_that_training_insists_on() -> None:
    for variant in ("", "+unimed-b", "+biomedclip", "+aligned"):
        recipe = Recipe.of(find_recipe(f"llava-med-slake{variant}"))
        build = next(
            w for w in words_of(f"llava-med-slake{variant}") if w[1:3] == ("cache", "build")
        )
        given = parsed(build)
        section = recipe.expert
        assert (given["expert"], given["mode"], given["features"]) == (
            section.name,
            section.mode,
            section.features,
        )
        assert given["out"] == f"caches/slake-{section.name}-{section.mode}"


def test_eight_gpus_train_under_a_launcher() -> None:
    launched = [w for w in words_of("huatuo-slake", gpus=8) if w[0] != "medalign"]
    assert [w[:6] for w in launched] == [
        ("torchrun", "--nproc_per_node", "8", "-m", "medalign", "train")
    ]
    parsed(launched[0][4:])


def test_the_script_is_one_that_a_shell_runs_and_asks_for_what_is_missing(tmp_path: Path) -> None:
    for name in paper_rows():
        source = find_recipe(name)
        path = tmp_path / f"{name}.sh"
        path.write_text("\n".join(script(source, Recipe.of(source))))
        subprocess.run(["bash", "-n", str(path)], check=True)
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, env={})
    assert done.returncode
    assert "CHECKPOINT: folder of the original" in done.stderr


def test_only_questions_without_images_ask_for_them() -> None:
    for name in paper_rows():
        prepare = next(w for w in words_of(name) if w[1] == "data")
        assert ("$IMAGES" in prepare) == name.endswith("iu-xray-vqa")


def test_a_script_goes_on_when_records_were_left_out_and_stops_at_errors(tmp_path: Path) -> None:
    source = find_recipe("llava-med-slake")
    path, log = tmp_path / "script.sh", tmp_path / "log"
    path.write_text("\n".join(script(source, Recipe.of(source))))
    given = {"CHECKPOINT": "c", "DOWNLOAD": "d", "WEIGHTS": "w", "LOG": str(log)}
    stub = tmp_path / "medalign"
    for failing, code, calls in (("prepare", 1, 9), ("prepare", 2, 2), ("seal", 1, 4)):
        log.unlink(missing_ok=True)
        case = f'case "$*" in *"{failing} "*) exit {code};; esac'
        stub.write_text(f'#!/bin/sh\necho "$*" >> "$LOG"\n{case}\n')
        stub.chmod(0o755)
        env = {**given, "PATH": f"{tmp_path}:/usr/bin:/bin"}
        done = subprocess.run(["bash", str(path)], env=env, check=False)
        stopped = (len(log.read_text().splitlines()), bool(done.returncode))
        assert stopped == (calls, calls < 9)


def test_what_is_set_is_trained_with_and_has_a_run_folder_of_its_own() -> None:
    source, changed = find_recipe("llava-med-slake"), ["loss.alpha=0.08", "expert.name=biomedclip"]
    made = stages(source, Recipe.of(source, changed), overrides=changed)
    words = [words for stage in made for words in stage.commands]
    _, _, build, _, train, ask, *_ = (parsed(each) for each in words)
    assert build["expert"] == "biomedclip"
    assert Recipe.of(find_recipe(train["recipe"]), train["override"]) == Recipe.of(source, changed)
    run = Path("runs/llava-med-slake+loss.alpha=0.08+expert.name=biomedclip")
    assert train["out"] == ask["source"] == run


def test_a_run_that_could_not_train_has_no_commands() -> None:
    source = find_recipe("llava-med-slake")
    with pytest.raises(RecipeError, match=r"no multiple of data.batch_size 1 \* 5 ranks"):
        stages(source, Recipe.of(source), gpus=5)
    source = find_recipe("huatuo-slake+layer-28")
    with pytest.raises(RecipeError, match="28, but huatuo-vision has layers 0 to 27"):
        stages(source, Recipe.of(source))
    with pytest.raises(RecipeError, match="28, but huatuo-vision has layers 0 to 27"):
        cost(Recipe.of(source), 1)


def test_figures_of_the_paper_stand_beside_its_own_rows_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Recipe.of(find_recipe("huatuo-slake")).paper.numbers
    for variant in shipped_variants():
        assert Recipe.of(find_recipe(f"huatuo-slake+{variant}")).paper.numbers == ()
    assert command(monkeypatch, "recipes", "show", "huatuo-slake", "--set", "loss.beta=0.1") == 0
    said = capsys.readouterr().out
    assert "# paper.numbers are those of huatuo-slake without --set loss.beta=0.1" in said
    assert "medalign recipes commands huatuo-slake --set loss.beta=0.1)" in said


def test_two_whole_recipes_are_not_added_up() -> None:
    with pytest.raises(RecipeError, match=r"huatuo-slake is a whole recipe; after a \+"):
        find_recipe("llava-med-slake+huatuo-slake")


def test_a_recipe_without_a_row_has_no_commands() -> None:
    source = find_recipe("demo")
    with pytest.raises(RecipeError, match="recipe demo reproduces no row of the paper"):
        stages(source, Recipe.of(source))


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["medalign", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_recipes_and_their_variants_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "recipes") == 0
    whole, variants, parts, _ = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in whole.splitlines()] == list(shipped_recipes())
    assert [line.split()[0] for line in variants.splitlines()[1:]] == list(shipped_variants())
    assert parts.splitlines()[0].startswith("parts, ")
    assert "HuatuoGPT-Vision on SLAKE (VQA)" in whole
    assert variants.index("layer-8 ") < variants.index("layer-12 ")


@pytest.mark.parametrize("name", ["demo", "llava-med-slake", "huatuo-pathvqa+aligned"])
def test_what_is_shown_is_the_same_recipe_again(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(monkeypatch, "recipes", "show", name, "--set", "run.seed=7") == 0
    text = capsys.readouterr().out
    path = tmp_path / "shown.yaml"
    path.write_text(text)
    assert Recipe.from_yaml(path) == Recipe.of(find_recipe(name), ["run.seed=7"])
    if name == "demo":
        assert "medalign train" not in text
        return
    assert f"#      medalign train {name} --cache" in text
    assert "  clip: 1.0  # assumed: the default of the trainer" in text


def test_a_recipe_that_says_too_little_for_commands_is_shown_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("extends: [demo]\npaper: {data: slake}\n")
    assert command(monkeypatch, "recipes", "show", str(tmp_path / "mine.yaml")) == 0
    assert "# no commands: recipe" in capsys.readouterr().out.splitlines()[-1]
    assert command(monkeypatch, "recipes", "show", "demo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["commands"] == []


def test_a_recipe_is_shown_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "recipes", "show", "huatuo-slake", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["made_of"] == ["paper", "huatuo", "vqa", "slake", "huatuo-slake"]
    assert shown["recipe"]["loss"]["layer"] == 16
    assert shown["commands"][3]["commands"][0][:3] == ["medalign", "train", "huatuo-slake"]


def test_a_wrong_name_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("recipes", "show"), ("recipes", "commands"), ("recipes", "cost"), ("train",)):
        assert command(monkeypatch, *words, "huatuo-slak") == 2
        said = capsys.readouterr().err
        assert said.startswith("medalign: no recipe 'huatuo-slak'")
        assert "did you mean huatuo-slake?" in said
        assert said.count("\n") == 1
